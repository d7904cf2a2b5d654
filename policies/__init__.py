"""Policies by name: ``find("routing", "slo_headroom", {"quantile": 0.95})``.

A policy is a module in ``policies/<kind>/`` with a function ``policy(**parameters)`` that returns a frozen value with
the one verb of its kind (router/core/policy.py). Its file name is its name.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature
from numbers import Number
from pkgutil import iter_modules
from typing import Any, Final

from router.spelling import suggestion  # router is imported first: it decides what runs compiled

KINDS: Final = ("routing", "admission", "scaling")


def names(kind: str) -> list[str]:
    """The policies of one kind, sorted."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of policy {kind!r}; expected one of {', '.join(KINDS)}")
    package = import_module(f"policies.{kind}")
    return sorted(module.name for module in iter_modules(package.__path__) if not module.name.startswith("_"))


def find(kind: str, name: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The policy of this name with these parameters; ValueError names the choices when there is none such."""
    known = names(kind)
    if name not in known:
        raise ValueError(f"unknown {kind} policy {name!r}; {suggestion(name, known)}")
    return build(f"{kind} policy {name!r}", import_module(f"policies.{kind}.{name}").policy, parameters or {})


def build(what: str, make: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """What *make* gives for these parameters; ValueError names *what* and those that it takes."""
    try:
        _check_kinds(what, signature(make).parameters, parameters)
        return make(**parameters)
    except TypeError as problem:
        allowed = list(signature(make).parameters)
        wrong = [key for key in parameters if key not in allowed]
        if not wrong:
            raise ValueError(f"{what}: {problem}") from problem
        raise ValueError(f"{what} has no parameter {wrong[0]!r}; {suggestion(wrong[0], allowed)}") from problem


_WANTED: Final = {
    bool: (bool, "true or false"),
    int: (Number, "a number"),
    float: (Number, "a number"),
    str: (str, "text"),
}


def _check_kinds(what: str, takes: Mapping[str, Parameter], parameters: Mapping[str, Any]) -> None:
    """A default says what its parameter is: a text for a number would be found out by the first request only."""
    for name, value in parameters.items():
        default = takes[name].default if name in takes else None
        kind, wanted = _WANTED.get(type(default), (object, ""))
        if not isinstance(value, kind) or (kind is Number and isinstance(value, bool)):
            raise ValueError(f"{what}: {name} must be {wanted} like {default!r}, not {value!r}")
