"""Loops in C where they were built, else the Python loops that they equal bit for bit.

A module ``name.py`` of loops may have a ``_name.c`` beside it, which setup.py builds with its constants. Must not know
any loop, nor whether C is enabled: ``HEADROOM_COMPILE=no`` keeps extensions from being found (``router/__init__``).
"""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def extension(name: str) -> ModuleType | None:
    """The extension of this name; None where it was not built."""
    try:
        return import_module(name)
    except ImportError:
        return None


def fastest(made: ModuleType | None, loop: _Loop) -> _Loop:
    """The C function of the same name, where there is one. It checks its arguments: TypeError, ValueError or IndexError
    where they are not what it reads, or read-only where it writes.
    """
    return cast("_Loop", getattr(made, loop.__name__)) if made else in_python(loop)


def in_python(loop: _Loop) -> _Loop:
    """The Python loop over the places of the arrays that it is handed: numpy's own numbers are slower, and warn of a
    division by 0.
    """

    @wraps(loop)
    def call(*arguments: Any) -> Any:
        return loop(*[each.data if isinstance(each, np.ndarray) else each for each in arguments])

    return cast("_Loop", call)
