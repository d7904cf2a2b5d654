"""The sections of a config about logs, as frozen, validated values. Must not depend on what writes them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from router.config.section import Section


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


class Log(Section):
    """What is logged beside the record.

    ``format``: of the process's own log on standard error; ``access``: one line a request that has ended, in which
    form, to ``access_file`` (left out: standard output).
    """

    format: Literal["text", "json"] = "text"
    access: Annotated[Literal["off", "text", "json"], BeforeValidator(_off)] = "off"
    access_file: Path | None = None
