"""Every signal, in the order of reports, with its row in the ledger's columns.

The modules of this package are imported at the first use; from then on the set is fixed, for arrays are made by it.
Must not depend on any one signal.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules

from router.core.columns import LEDGER
from router.core.signals.signal import Signal, SimulatedEngine, Value


@cache
def registered() -> tuple[Signal, ...]:
    """Every signal, by name. Raises ValueError when two have one name."""
    package = import_module(__name__.rpartition(".")[0])
    modules = (import_module(f"{package.__name__}.{module.name}") for module in iter_modules(package.__path__))
    found = sorted(
        (vars(module)["SIGNAL"] for module in modules if "SIGNAL" in vars(module)), key=lambda each: each.name
    )
    for first, second in pairwise(found):
        if first.name == second.name:
            raise ValueError(f"two signals have the name {first.name!r}")
    return tuple(found)


@cache
def names() -> tuple[str, ...]:
    """Their names, in that order."""
    return tuple(each.name for each in registered())


@cache
def simulated() -> tuple[Callable[[SimulatedEngine], Value], ...]:
    """How a simulated engine has each, in that order: called for every report of a run."""
    return tuple(each.simulated for each in registered() if each.simulated is not None)


@cache
def rows() -> tuple[int, ...]:
    """The row of each in the ledger's columns: its own, or one after the named ones."""
    end = iter(range(LEDGER, LEDGER + len(registered())))
    return tuple(next(end) if each.row is None else each.row for each in registered())


@cache
def row_count() -> int:
    """Rows of the ledger's columns."""
    return max(LEDGER, *(row + 1 for row in rows()))


@cache
def _row_by_name() -> dict[str, int]:
    return dict(zip(names(), rows(), strict=True))


def row_of(name: str) -> int:
    """The row of the signal of that name. Raises KeyError."""
    row = _row_by_name().get(name)
    if row is None:
        raise KeyError(f"unknown signal {name!r}; expected one of {', '.join(names())}")
    return row


@cache
def _absent() -> dict[str, float]:
    return {each.name: each.absent for each in registered()}


def in_order(values: Mapping[str, float]) -> tuple[float, ...]:
    """The values as a report holds them; ``absent`` where there is none. Raises TypeError for an unknown name."""
    absent = _absent()
    if not values.keys() <= absent.keys():
        raise TypeError(f"unknown signals {sorted(values.keys() - absent.keys())}; expected {', '.join(names())}")
    return tuple([values.get(name, none) for name, none in absent.items()])
