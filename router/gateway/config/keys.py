"""The API keys of a config and of its key file, as digests: by digest, whose a key is.

A key is compared by the SHA-256 of it: a key of 256 random bits, as ``headroom key`` makes them, cannot be found from
that, and a slow hash would cost a request more than all else. Must not depend on where keys are compared.
"""

import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator

from router.config import settings
from router.config.section import Section
from router.config.text import ConfigProblem, Loc, read, unknown
from router.core.errors import ConfigError
from router.core.quota import OTHERS
from router.gateway.protocols.ingress import Caller

_OTHERS_READ: Final = stat.S_IRWXO | stat.S_IRGRP
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class KeyFile(Section):
    """The content of a key file: the same entries as ``api_keys`` of the config; none where all were taken out."""

    keys: Annotated[tuple[settings.ApiKey, ...], BeforeValidator(lambda given: () if given is None else given)] = ()


@dataclass(frozen=True, slots=True)
class PlacedKey:
    """A key's entry, where the config has it or names its file, and its place in that file (empty: there is none)."""

    at: Loc
    given: settings.ApiKey
    where: str = ""

    def fault(self, key: str, message: str) -> ConfigProblem:
        """What is wrong with a key of the entry."""
        if self.where:
            return ConfigProblem(self.at, f"{self.where}{f'.{key}' if key else ''}: {message}")
        return ConfigProblem((*self.at, *key.split(".")) if key else self.at, message)


def digest(secret: str) -> str:
    """The SHA-256 of a secret, in hex: the form in which it is stored and compared."""
    return hashlib.sha256(secret.encode()).hexdigest()


def placed(parsed: settings.Settings, folder: Path) -> list[PlacedKey]:
    """All entries, those of the config first. Raises ConfigError where the key file cannot be taken."""
    own = [PlacedKey(("api_keys", index), given) for index, given in enumerate(parsed.api_keys)]
    if parsed.key_file is None:
        return own
    path = folder / parsed.key_file
    given = read(path).parse(KeyFile).keys
    _check_mode(path, in_clear=any(each.key is not None for each in given))
    return own + [PlacedKey(("key_file",), each, f"{path}: keys[{index}]") for index, each in enumerate(given)]


def _check_mode(path: Path, *, in_clear: bool) -> None:
    """Who else may write it may give themselves a key; who may read keys in clear has them. Raises ConfigError."""
    mode = path.stat().st_mode
    if mode & _OTHERS_WRITE:
        raise ConfigError([f"{path}: others may write it (mode {stat.S_IMODE(mode):04o}); chmod 600 {path}"])
    if in_clear and mode & _OTHERS_READ:
        raise ConfigError(
            [
                f"{path}: others may read it (mode {stat.S_IMODE(mode):04o}), and it has keys in clear; "
                f"chmod 600 {path}, or give the sha256 of each (`headroom key`)"
            ]
        )


def callers(
    keys: Iterable[PlacedKey], environment: Mapping[str, str], problems: list[ConfigProblem]
) -> dict[str, Caller]:
    """By digest, whose each key is; what is wrong is added to *problems*."""
    found: dict[str, Caller] = {}
    for each in keys:
        given = each.given
        if given.key_env and not environment.get(given.key_env):
            problems.append(each.fault("key_env", f"environment variable {given.key_env} is not set"))
            continue
        name = given.sha256 or digest(given.key or environment[given.key_env or ""])
        if name in found:
            problems.append(each.fault("", f"the same key is already {found[name].tenant!r}'s"))
        account = f"{given.tenant}/{name[:8]}" if given.quota else ""
        found[name] = Caller(given.tenant, given.slo_class or "", account, given.fallback or "")
    return found


def tenants(parsed: settings.Settings, keys: Sequence[PlacedKey]) -> set[str]:
    """The only tenants that there can be. Empty: any may come, as where there is no key, or a key file: that a tenant's
    last key is taken out of it must not be refused for what the config has of that tenant.
    """
    return {each.given.tenant for each in keys} if parsed.key_file is None else set()


def faults(parsed: settings.Settings, keys: Sequence[PlacedKey]) -> Iterator[ConfigProblem]:
    """Classes that are not there, and quotas of tenants that no key has."""
    for each in keys:
        if each.given.slo_class and each.given.slo_class not in parsed.slo_classes:
            yield each.fault("slo_class", unknown("class", each.given.slo_class, parsed.slo_classes))
    known = tenants(parsed, keys)
    for name in parsed.quotas:
        if known and name != OTHERS and name not in known:
            yield ConfigProblem(("quotas", name), unknown("tenant", name, known))
