"""A profile file: corrections of the efficiency tables that ``headroom-simulator calibrate --profile`` wrote.

Named by ``profile:`` in router.yaml and pool.yaml, from the folder of that file. It holds for the tables that it was
made with, so one that corrects others is refused whole. Must not depend on how corrections are found.
"""

from math import log
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from router.config.section import Count, Name, PositiveFloat, PositiveInt, Section
from router.config.text import read
from router.core.errors import ConfigError
from router.core.profile import LOG_MOST, TERMS, Correction, Profile, tables_version
from router.spelling import suggestion

VERSION: Final = 1
_MOST: Final = 2.718281828459045**LOG_MOST


class Entry(Section):
    """The factors for all that is of one kind."""

    level: Literal["family", "card", "engine", "precision", "kind", "model", "setup"]
    name: Name
    rows: Count = 0
    factors: dict[str, Annotated[float, Field(gt=0, le=_MOST, ge=1 / _MOST)]]

    @field_validator("factors")
    @classmethod
    def _known_terms(cls, factors: dict[str, float]) -> dict[str, float]:
        for name in factors:
            if name not in TERMS:
                raise ValueError(f"no term {name!r}; {suggestion(name, TERMS)}")
        return factors


class ProfileFile(Section):
    """The whole file."""

    headroom_profile: Literal[1]
    tables: Name
    made_from: str = ""
    rows: PositiveInt
    band: PositiveFloat
    errors: dict[str, Any] = {}
    corrections: tuple[Entry, ...]


def read_profile(path: Path) -> Profile:
    """The profile at *path*. Raises ConfigError naming every fault, and for one that corrects other tables."""
    text = read(path)
    parsed = text.parse_or_problems(ProfileFile)
    if isinstance(parsed, list):
        raise text.error(parsed)
    if parsed.tables != tables_version():
        raise ConfigError([
            f"{path}: corrects the tables {parsed.tables} of another version of Headroom, whose errors are not those "
            f"of these ({tables_version()}): run `headroom-simulator calibrate --profile` again"
        ])  # fmt: skip
    return _profile(parsed)


def _profile(parsed: ProfileFile) -> Profile:
    logs: dict[Correction, tuple[float, ...]] = {
        (e.level, e.name): tuple(log(e.factors.get(term, 1.0)) for term in TERMS) for e in parsed.corrections
    }
    rows: dict[Correction, int] = {(e.level, e.name): e.rows for e in parsed.corrections}
    return Profile(logs, rows, parsed.band, {"rows": parsed.rows, "errors": parsed.errors, "tables": parsed.tables})
