"""Requests to a Kubernetes API server: read an object, write it back, patch a part of it.

Plain HTTP on httpx, which is there anyway: four verbs on two kinds of objects need no client library with models of all
the others. Every call is bounded in time, and in the size of the answer. Must not depend on what the objects mean.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import httpx

from router.core.errors import KubernetesError
from router.kubernetes.access import Access

MERGE_PATCH: Final = "application/merge-patch+json"
_ANSWER_BYTES_MAX: Final = 4 * 2**20
_SHOWN_MOST: Final = 300
CONFLICT: Final = 409
NOT_FOUND: Final = 404

Object = Mapping[str, Any]


class KubernetesClient:
    """Connections to one API server."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        """Opens nothing yet. Raises ValueError where the file of the authority cannot be used."""
        self.access, self._timeout_s = access, timeout_s
        self._client = httpx.AsyncClient(
            base_url=access.url, timeout=timeout_s, trust_env=False, verify=_verified(access)
        )

    async def get(self, path: str) -> Object:
        """The object there. Raises KubernetesError."""
        return await self._send("GET", path, None, "application/json")

    async def create(self, path: str, body: Object) -> Object:
        """The new object in a collection. Raises KubernetesError."""
        return await self._send("POST", path, body, "application/json")

    async def replace(self, path: str, body: Object) -> Object:
        """The object in the place of the one whose ``resourceVersion`` it has. Raises KubernetesError."""
        return await self._send("PUT", path, body, "application/json")

    async def patch(self, path: str, body: Object) -> Object:
        """The object with a part of it changed. Raises KubernetesError."""
        return await self._send("PATCH", path, body, MERGE_PATCH)

    async def _send(self, method: str, path: str, body: Object | None, content_type: str) -> Object:
        try:
            headers = self._headers()
            if body is not None:
                headers["content-type"] = content_type
            content = None if body is None else json.dumps(body).encode()
            async with asyncio.timeout(self._timeout_s):
                async with self._client.stream(method, path, content=content, headers=headers) as answer:
                    text = await _text(answer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise self._failed(method, path, error) from None
        found = _object(text)
        if not answer.is_success or found is None:
            raise _refused(method, path, answer.status_code, found, text)
        return found

    def _headers(self) -> dict[str, str]:
        """Raises OSError where the token cannot be read."""
        token = self.access.bearer()
        return {"accept": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})

    def _failed(self, method: str, path: str, error: Exception) -> KubernetesError:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return KubernetesError(0, f"{method} {self.access.url}{path}: {what}")

    async def lines(self, path: str, idle_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on, as of a watch, each when it comes; ends where the server ends it.

        Raises KubernetesError, also when nothing comes for *idle_s*.
        """
        timeout = httpx.Timeout(self._timeout_s, read=idle_s)
        try:
            async with self._client.stream("GET", path, headers=self._headers(), timeout=timeout) as answer:
                if not answer.is_success:
                    text = await _text(answer)
                    raise _refused("GET", path, answer.status_code, _object(text), text)
                async for line in _lines(answer):
                    yield line
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise self._failed("GET", path, error) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _verified(access: Access) -> ssl.SSLContext | bool:
    if access.ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(access.ca))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{access.ca}: cannot be used as the authority of the API server: {error}") from None


def _refused(method: str, path: str, status: int, found: Object | None, text: bytes) -> KubernetesError:
    return KubernetesError(status, f"{method} {path}: {status} {_message(found, text)}")


async def _lines(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Whole lines; httpx's own wait for a decoder and take any separator of Unicode for an end."""
    rest = bytearray()
    async for piece in answer.aiter_bytes():
        rest += piece
        *whole, last = rest.split(b"\n")
        for line in whole:
            yield bytes(line)
        rest = last
        if len(rest) > _ANSWER_BYTES_MAX:
            raise httpx.DecodingError(f"a line of the answer has more than {_ANSWER_BYTES_MAX} bytes")


async def _text(answer: httpx.Response) -> bytes:
    text = bytearray()
    async for piece in answer.aiter_bytes():
        text += piece
        if len(text) > _ANSWER_BYTES_MAX:
            raise httpx.DecodingError(f"the answer has more than {_ANSWER_BYTES_MAX} bytes")
    return bytes(text)


def _object(text: bytes) -> Object | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _message(found: Object | None, text: bytes) -> str:
    """What the server states of a request that it refused: the message of its ``Status``, else what it sent."""
    message = found.get("message") if found is not None else None
    return str(message)[:_SHOWN_MOST] if message else text[:_SHOWN_MOST].decode(errors="replace")
