"""Where backends come from beside those that the config lists: one section a kind of source.

Must not depend on how a source is read.
"""

from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from router.config.section import HttpUrl, Name, NonNegativeFloat, PositiveFloat, Section, named

PORT_MAX: Final = 65_535


class FileSource(Section):
    """Target lists as Prometheus's ``file_sd`` has them, YAML or JSON, from the config's folder.

    The last part of ``path`` may have wildcards; the lists of all files are one.
    """

    path: Path


def _dns_server(text: str) -> str:
    try:
        address_port(text)
    except ValueError:
        raise ValueError(f"expected an address such as 10.0.0.10, 10.0.0.10:53 or [::1]:53, not {text!r}") from None
    return text


def address_port(text: str, port: int = 53) -> tuple[str, int]:
    """An IP address with its port. Raises ValueError."""
    bare = text.count(":") > 1 and "[" not in text
    parts = urlsplit(f"//[{text}]" if bare else f"//{text}")
    ip_address(parts.hostname or "")
    if parts.port == 0 or parts.username is not None or parts.path:
        raise ValueError(f"{text!r} is no address with a port")
    return parts.hostname or "", port if parts.port is None else parts.port


class DnsSource(Section):
    """The addresses of a name, each a backend: with ``port``, its A (else AAAA) records; without, its SRV records.

    ``servers``: DNS servers in place of this machine's.
    """

    name: Name
    port: Annotated[int, Field(ge=1, le=PORT_MAX)] | None = None
    scheme: Literal["http", "https"] = "http"
    servers: tuple[Annotated[Name, AfterValidator(_dns_server)], ...] = ()
    timeout_s: PositiveFloat = 5.0


class KubernetesSource(Section):
    """The pods of a Service, by its EndpointSlices (``service``), or those with these labels (``selector``).

    ``namespace``: left out, this pod's own. ``port``: the number or the name of one of several. ``url``: of an API
    server, left out: that of this pod, by its service account.
    """

    service: Name | None = None
    selector: Name | None = None
    namespace: Name | None = None
    port: Annotated[int, Field(ge=1, le=PORT_MAX)] | Name | None = None
    scheme: Literal["http", "https"] = "http"
    url: HttpUrl | None = None
    timeout_s: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _service_or_selector(self) -> Self:
        if (self.service is None) == (self.selector is None):
            raise ValueError("give exactly one of service, selector")
        return self


class RedisSource(Section):
    """The engines that announce themselves in the shared state (``headroom register``); ``period_s``: of readings."""

    period_s: PositiveFloat = 1.0


class Origin(Section):
    """One source, of exactly one kind.

    ``keep_s``: how long a backend of a source that fails is kept while its own health checks fail too; one whose health
    checks pass is kept for as long as the source fails.
    """

    file: Annotated[FileSource | None, named("path")] = None
    dns: DnsSource | None = None
    redis: RedisSource | None = None
    kubernetes: Annotated[KubernetesSource | None, named("service")] = None
    keep_s: Annotated[NonNegativeFloat, Field(le=86_400)] = 300.0

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        return self

    @model_validator(mode="after")
    def _installed(self) -> Self:
        package, extra = PACKAGES.get(self.kind, ("", ""))
        if package and find_spec(package) is None:
            raise ValueError(f"{self.kind} needs a package that is missing: pip install 'headroom-router[{extra}]'")
        return self

    @property
    def kind(self) -> str:
        """The key of the source."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def source(self) -> Section:
        """The section of its kind."""
        found = getattr(self, self.kind)
        assert isinstance(found, Section)
        return found


KINDS: Final = ("file", "dns", "kubernetes", "redis")
PACKAGES: Final = {"dns": ("dns", "dns")}  # by kind: the package that reads it, and the extra that installs it
