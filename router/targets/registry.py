"""Finds a scaling target by name: the name of a module of this package that has a ``SPEC``.

Only the module of a target that a config names is imported, so that a config pays for no other's imports. Must not
depend on any one target.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from router.spelling import suggestion
from router.targets.target import TargetSpec


def names() -> list[str]:
    """Every target there is."""
    return sorted(name for name in _modules() if _spec(name) is not None)


def spec_of(name: str) -> type[TargetSpec]:
    """The options of the target of that name. Raises ValueError with the nearest name."""
    found = _spec(name) if name in _modules() else None
    if found is None:
        raise ValueError(f"unknown scaling target {name!r}; {suggestion(name, names())}")
    return found


def _package() -> Any:
    return import_module(__name__.rpartition(".")[0])


def _modules() -> frozenset[str]:
    return frozenset(module.name for module in iter_modules(_package().__path__))


def _spec(name: str) -> type[TargetSpec] | None:
    spec: type[TargetSpec] | None = getattr(import_module(f"{_package().__name__}.{name}"), "SPEC", None)
    return spec
