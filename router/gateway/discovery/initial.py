"""The first config for engines of which only the addresses are known: short for ``serve --backend``, commented for
``headroom init``.

Must not depend on a running gateway.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from router.config.settings import Backend
from router.core.errors import Unanswered
from router.engines import EngineFacts, EngineKind
from router.gateway.discovery.reading import completed, read_engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.private_files import replace_content

_HEAD: Final = """\
# Headroom's config, written by `headroom init` from what the engines reported. `headroom check FILE` checks it; every
# key with its meaning is in deploy/router.yaml.

listen: {host: 127.0.0.1, port: 8080}

backends:
"""
_TAIL: Final = """
slo_classes:
  default: {ttft_ms: 2000, tpot_ms: 100}   # the SLO of requests without an x-slo-... header
"""
_COLUMN: Final = 34  # at which comments begin


def backends_of(urls: Sequence[str]) -> list[Backend]:
    """A backend for each address, named after it. Raises ValueError for what is no address."""
    backends: list[Backend] = []
    for url in urls:
        name = _name(url)
        taken = sum(each.name == name or each.name.startswith(f"{name}-again-") for each in backends)
        try:
            backends.append(Backend(name=f"{name}-again-{taken}" if taken else name, url=url))
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return backends


def _name(url: str) -> str:
    """``a-8000`` for ``http://a:8000``."""
    parts = urlsplit(url)
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{parts.netloc}{parts.path}").strip("-")[:80] or "engine"


@contextmanager
def short_config(backends: Sequence[Backend], port: int) -> Iterator[Path]:
    """A config file with nothing but addresses, for as long as it is used: the gateway reads the rest from the engines.

    A file and no value, so that workers and reloads find it as they find any other.
    """
    lines = [f"  - {{name: {_quoted(given.name)}, url: {_quoted(given.url)}}}\n" for given in backends]
    with TemporaryDirectory(prefix="headroom-") as folder:
        path = Path(folder) / "router.yaml"
        replace_content(path, (f"listen: {{port: {port}}}\nbackends:\n" + "".join(lines)).encode())
        yield path


async def commented(urls: Sequence[str], timeout_s: float) -> tuple[str, list[str]]:
    """A config with what each engine reported, commented; and of those that did not answer, why."""
    client = ProbeClient(timeout_s)
    try:
        given = backends_of(urls)
        answers = await asyncio.gather(*(read_engine(each, client) for each in given), return_exceptions=True)
    finally:
        client.close()
    text, missing = [_HEAD], []
    for each, answer in zip(given, answers, strict=True):
        if isinstance(answer, Unanswered):
            missing.append(f"{each.url}: {answer}")
            text.append(_unread(each, answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            text.append(_found(each, *answer))
    return "".join(text) + _TAIL, missing


def _unread(given: Backend, why: Unanswered) -> str:
    reason = f"{_plain(str(why))}; read when it answers"
    return f"  - name: {_quoted(given.name)}\n{_line('url', _quoted(given.url), reason)}"


def _found(given: Backend, kind: EngineKind, facts: EngineFacts) -> str:
    return f"  - name: {_quoted(given.name)}\n" + "".join(_lines(completed(given, kind, facts), kind, facts))


def _lines(given: Backend, kind: EngineKind, facts: EngineFacts) -> Iterator[str]:
    yield _line("url", _quoted(given.url))
    yield _line("engine", given.engine or kind.name, _plain(facts.version))
    yield _line("models", _quoted(list(given.models)), "{client's name: engine's name} where they differ")
    if given.model is not None and given.model.like:
        yield _line("model", given.model.like, "its shape, by the name of the checkpoint")
    else:
        yield _line("# model", "?", "not reported: its shape, as llama-3-8b; left out, it is assumed and learnt")
    yield _line("# card", "?", "not reported: what it runs on, as h100; left out, it is assumed and learnt")
    for name in ("tp", "pp", "context_tokens_max", "kv_tokens_max", "seqs_max", "chunk_tokens"):
        if name in given.model_fields_set:
            yield _line(name, str(getattr(given, name)), "as the engine reports")


def _line(key: str, value: str, comment: str = "") -> str:
    written = f"    {key}: {value}"
    return (f"{written:<{_COLUMN}}  # {comment}" if comment else written) + "\n"


def _quoted(value: str | list[str]) -> str:
    """As YAML: JSON without escapes of its own for what YAML takes as it is. ``null`` and ``123`` stay names."""
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    """Text that cannot end a comment."""
    return "".join(char for char in text if char.isprintable())[:200]
