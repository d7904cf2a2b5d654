"""Where backends come from beside those that the config lists: one section a kind of source.

Must not depend on how a source is read.
"""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from router.config.section import NonNegativeFloat, Section, named


class FileSource(Section):
    """Target lists as Prometheus's ``file_sd`` has them, YAML or JSON, from the config's folder.

    The last part of ``path`` may have wildcards; the lists of all files are one.
    """

    path: Path


class Origin(Section):
    """One source, of exactly one kind.

    ``keep_s``: how long a backend of a source that fails is kept while its own health checks fail too; one whose health
    checks pass is kept for as long as the source fails.
    """

    file: Annotated[FileSource | None, named("path")] = None
    keep_s: Annotated[NonNegativeFloat, Field(le=86_400)] = 300.0

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
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


KINDS: Final = ("file",)
