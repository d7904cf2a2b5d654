"""The trace formats: one module each, found in this folder. A new format is one new file with a ``FORMAT``.

Must not depend on reading files: ``format_of`` sees the first line only.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from simulator.traces.entry import TraceFormat
from simulator.traces.fields import column_names, json_object


@lru_cache(maxsize=1)
def formats() -> tuple[TraceFormat, ...]:
    """Every format, in the order of their file names."""
    names = sorted({module.name for module in iter_modules(__path__)})
    return tuple(import_module(f"{__name__}.{name}").FORMAT for name in names)


def format_of(first: str) -> TraceFormat:
    """The format of the file whose first line is *first*. Raises ValueError, which lists the formats there are."""
    text = first.strip()
    if text.startswith("{"):
        return format_of_keys(list(json_object(text)))
    columns = set(column_names(text))
    for each in _of_csv():
        if columns >= {name.lower() for name in each.columns}:
            return each
    headers = " or ".join(f"{each.name} ({','.join(each.columns)})" for each in _of_csv())
    raise ValueError(f"expected a JSON object or a header of {headers}, found {text[:60]!r}")


def format_of_keys(found: Sequence[str]) -> TraceFormat:
    """The format whose objects have these keys. Raises ValueError, which lists the keys there are."""
    for each in formats():
        if not each.columns and not set(each.keys).isdisjoint(found) and set(each.not_keys).isdisjoint(found):
            return each
    keys = dict.fromkeys(key for each in formats() for key in each.keys)
    raise ValueError(f"expected a key among {', '.join(keys)}; found {', '.join(found[:6]) or 'none'}")


def _of_csv() -> list[TraceFormat]:
    return [each for each in formats() if each.columns]
