"""Finds the rows of the efficiency tables for an engine, a card family, a link and a precision.

Assumes: `tables.py`. Names of an engine are rows of the table, ``family`` or ``family-era`` ("vllm", "vllm-2023");
aliases are resolved by ``router.engines``. What a table lacks reads its default row, whose errors are wide. Must not
know: any particular backend (that is learnt in `belief.py`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.efficiency import Efficiency, Precision, compose
from router.core.tables import DEFAULT, ENGINES, FAMILIES, LINKS, PRECISIONS

_PRECISION_ALIASES: Final[Mapping[str, str]] = MappingProxyType({
    "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "fp16/bf16": "bf16",
    "float32": "fp32", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "w8a8": "int8", "gptq-int8": "w8a16",
    "gptq": "int4", "gptq-int4": "int4", "w4a16": "int4", "int4(w4a16)": "int4", "nvfp4": "fp4",
})  # fmt: skip


def efficiency(engine: str, family: str, link: str, precision: str) -> Efficiency:
    """The rows of the tables for these keys, put together; shares never exceed the sheet."""
    row = row_names(engine, family, link, precision)
    return compose(ENGINES[row["engine"]], FAMILIES[row["family"]], LINKS[row["link"]], PRECISIONS[row["precision"]])


def row_names(engine: str, family: str, link: str, precision: str) -> Mapping[str, str]:
    """The row each table is read at for these keys; what a table lacks reads its default.

    An engine era falls back to its family. A card family may have a row for engines of an era ("cdna-2024"), since the
    kernels of a young vendor improve faster than its cards. ValueError for a precision that is not there.
    """
    era = engine.lower()
    stored = _PRECISION_ALIASES.get(precision.lower(), precision.lower())
    if stored not in PRECISIONS:
        raise ValueError(f"no precision named {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return {
        "engine": next((key for key in (era, era.split("-", maxsplit=1)[0]) if key in ENGINES), DEFAULT),
        "family": next((key for key in (f"{family}-{_year(era)}", family) if key in FAMILIES), DEFAULT),
        "link": link if link in LINKS else DEFAULT,
        "precision": stored,
    }


_FIRST: Final = "2024"


def _year(era: str) -> str:
    """The year of an engine's era as families have it: all that is older than the first counts as of that."""
    year = era.rpartition("-")[2]
    return _FIRST if year.isdigit() and year <= _FIRST else year


def precision(name: str) -> Precision:
    """How that precision is stored and computed; ValueError lists those there are."""
    return PRECISIONS[row_names("", "", "", name)["precision"]]
