"""Which Redis or Valkey servers hold the shared state, and how they are reached: a plain value, made from the config.

Must not depend on a client library: every command reads a config, few connect.
"""

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from router.urls import host_port, redis_db


@dataclass(frozen=True, slots=True)
class Seed:
    """One address to begin with, and who this router is there. ``path``: of a Unix socket, instead of host and port."""

    host: str = ""
    port: int = 6379
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.path or host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class RedisServers:
    """Servers that share one data set: one server and its replicas, or nodes of one cluster.

    ``seeds``: any that answers is enough; with ``service`` they are sentinels, and their user and password are of the
    sentinels. ``username`` and ``password``: of the servers of data, where they are not in the seeds. ``ca``,
    ``client_cert`` and ``client_key``: files in PEM form, empty: the authorities of this machine, no certificate.
    """

    seeds: tuple[Seed, ...]
    db: int = 0
    tls: bool = False
    service: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    ca: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify_hostname: bool = True

    def __str__(self) -> str:
        return ", ".join(map(str, self.seeds))

    @classmethod
    def of_urls(cls, *urls: str, **more: object) -> Self:
        """Those of these URLs, which the config's border has checked; ``more``: further fields."""
        seeds = tuple(map(_seed, urls))
        facts = {"db": redis_db(urls[0]), "tls": urls[0].startswith("rediss:")} | more
        return cls(seeds, **facts)  # type: ignore[arg-type]


def _seed(url: str) -> Seed:
    parts = urlsplit(url)
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        return Seed(path=unquote(parts.path), username=username, password=password)
    return Seed(parts.hostname or "", parts.port or 6379, "", username, password)
