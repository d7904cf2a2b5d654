"""Where a backend's engine is and how to address it: plain data, made from the config. No socket is opened here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from router.engines import EngineKind
from router.engines.openai import KIND as OPENAI
from router.gateway.tls import TlsContext

CHAT_TEMPLATE: Final = "<|im_start|>{role}\n{content}<|im_end|>\n"
CHAT_OPENING: Final = "<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Target:
    """Address, kind and key of one engine.

    ``models`` maps the name clients use to the name the engine uses (a name that is not there passes unchanged).
    ``chat_template`` and ``chat_opening`` turn chat messages into a prompt for an engine that takes prompts alone:
    the first once a message with ``{role}`` and ``{content}``, the second at the end. ``certificates``: what it is
    authenticated by and shown over TLS, where that is not what this machine trusts.
    """

    name: str
    host: str
    port: int
    tls: bool = False
    path_prefix: str = ""
    engine: EngineKind = OPENAI
    api_key: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    chat_template: str = CHAT_TEMPLATE
    chat_opening: str = CHAT_OPENING
    certificates: TlsContext | None = None

    @classmethod
    def of_url(cls, name: str, url: str, **more: Any) -> "Target":
        """The target at ``http[s]://host[:port][/prefix]``. Raises ValueError for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"expected http://host:port, not {url!r}")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(name, parts.hostname, port, tls=tls, path_prefix=parts.path.rstrip("/"), **more)

    @property
    def authority(self) -> str:
        """The value of the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
