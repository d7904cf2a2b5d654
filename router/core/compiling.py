"""How loops that decisions spend their time in are compiled.

Believes: numba, and that a loop over backends in plain numbers says best what is computed. Must not know: any loop.

Compiled once a machine and kept beside the source or in the user's cache; where neither may be written every process
compiles anew, which takes seconds. What is kept is found again by the function's own file: constants that
it uses have to stand there. The interpreter's lock stays held: a loop is over sooner than the lock is had again.
What an argument is, is said by the signature: ``f8[:, ::1]`` is a C-contiguous matrix of float64.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[_Function], _Function]:
    """Compile for this signature now, or read what was compiled before. Divisions by zero give what numpy gives."""

    def compile_it(function: _Function) -> _Function:
        try:
            made = njit(signature, cache=True, error_model="numpy")(function)
        except (RuntimeError, OSError):  # nowhere to write, or no room there
            made = njit(signature, error_model="numpy")(function)
        return cast("_Function", made)

    return compile_it


def part(function: _Function) -> _Function:
    """Compiled into those that call it."""
    return cast("_Function", njit(error_model="numpy")(function))
