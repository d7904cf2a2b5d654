"""The bounds of what clients name: models, tenants, sessions, requests. What is stored of a request is made here.

A head may have 64 KB and a body megabytes; a thousand requests are kept for ``/explain``. Must not depend on the format
of a request.
"""

import hashlib
from typing import Final

from router.core.errors import Rejected

NAME_CHARS_MAX: Final = 256  # names of models on Hugging Face have at most 193
_REQUEST_ID_BYTES_MAX: Final = 256
_FIELD_CHARS_MAX: Final = 300


def model_name(name: str) -> str:
    """The name of a model. Raises Rejected with 404 where it is longer than any."""
    if len(name) > NAME_CHARS_MAX:
        message = f"no backend serves a model with a name of {len(name)} characters, {name[:40]!r}..."
        raise Rejected(404, message, "model", "model_not_found")
    return name


def identity(value: bytes) -> str:
    """A tenant or a session: as it is, or its SHA-256, which is as unique, where it is longer than names are."""
    if len(value) > NAME_CHARS_MAX:
        return hashlib.sha256(value).hexdigest()
    return value.decode("latin-1")


def field_value(text: str) -> bytes:
    """A text as the value of a header: in one line, its beginning, other letters than ASCII's as question marks."""
    return "".join(each if " " <= each <= "~" else "?" for each in text[:_FIELD_CHARS_MAX]).encode()


def request_id(value: bytes) -> bytes:
    """A client's own id of its request, cut to its bound; it need not be unique."""
    return value[:_REQUEST_ID_BYTES_MAX]
