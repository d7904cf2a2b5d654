"""Fitted tables as the Python literals of `router/core/tables.py`.

Keeps the order of the tables. Must not depend on how they were fitted.
"""

from collections.abc import Mapping
from dataclasses import fields
from textwrap import fill
from typing import Any, Final

from simulator.calibration.fit import Tables

_NAMES: Final = {"engine": "ENGINES", "family": "FAMILIES", "link": "LINKS", "precision": "PRECISIONS"}
_TYPES: Final = {"engine": "EngineEfficiency", "family": "Family", "link": "Link", "precision": "Precision"}

_HEAD: Final = '''"""How much of a data sheet an engine gets, and what it adds of its own: the numbers.

Made by `python -m simulator calibrate --write`: each entry is the most probable value given the
measurements below and the prior in `simulator/calibration/prior.py`. An entry no measurement reads
is the prior: published kernel tables, vendor figures, likeness to a measured row; its sigma is wide.

{made_from}
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.efficiency import EngineEfficiency, Family, Link, Precision

DEFAULT: Final = "default"
'''


def tables_source(given: Tables, made_from: str) -> str:
    """The source of the whole module, three significant digits a number; `ruff format` lays it out."""
    return _HEAD.format(made_from=fill(f"Fitted to, source (rows): {made_from}", 100)) + "".join(
        _table(name, given[name]) for name in _NAMES
    )


def _table(name: str, rows: Mapping[str, Any]) -> str:
    body = "".join(f"    {_key(key)}: {_row(name, row)},\n" for key, row in rows.items())
    return f"\n{_NAMES[name]}: Final[Mapping[str, {_TYPES[name]}]] = MappingProxyType({{\n{body}}})\n"


def _key(key: str) -> str:
    return "DEFAULT" if key == "default" else f'"{key}"'


def _row(name: str, row: Any) -> str:
    given = ", ".join(f"{f.name}={_value(getattr(row, f.name))}" for f in fields(row))
    return f"{_TYPES[name]}({given})"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f'"{each}"' for each in value) + ("," if len(value) == 1 else "") + ")"
    return repr(float(f"{value:.3g}"))
