"""How loops that decisions spend their time in are compiled.

Believes: numba, and that a loop over backends in plain numbers says best what is computed. Must not know: any loop.

A module's loops are compiled when one of them is first called, and from then on stand in the module in place of what
was called: who decides without a forecast pays nothing for the forecast's. ``compile_all`` is for a server, whose first
request should not wait. What was compiled is kept beside the source or in the user's cache, where the next process
finds it; where neither may be written every process compiles anew, which takes seconds. What is kept is found again by
the function's own file, by the code of its module's loops and by the constants that they use, which may stand in
another. The interpreter's lock stays held: a loop is over sooner than the lock is had again.
What an argument is, is said by the signature: ``f8[:, ::1]`` is a C-contiguous matrix of float64. Numba would look at
every argument of every call to find out which of a loop's signatures is meant; there is one, so that is left out
(a fifth of a call) unless ``checked``: the tests and the validation of a policy have it so, and find whatever is handed
a loop that it does not take, and a loop that writes into an array that it was handed read-only.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from hashlib import sha256
from typing import Any, Final, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

checked = False

_waiting: Final[dict[str, list[tuple[Callable[..., Any], str]]]] = {}
"""By module, in order: functions that are not compiled yet, with the signatures of those that are loops."""


def compiled(signature: str) -> Callable[[_Function], _Function]:
    """A loop for this signature; only loops of its own module may call it. Divisions by zero give what numpy gives."""

    def later(function: _Function) -> _Function:
        _waiting.setdefault(function.__module__, []).append((function, signature))
        names, name = function.__globals__, function.__name__

        @wraps(function)
        def first_call(*arguments: Any) -> Any:
            _compile(function.__module__)
            return names[name](*arguments)

        return cast("_Function", first_call)

    return later


def part(function: _Function) -> _Function:
    """Compiled into the loops and parts of its module that call it."""
    _waiting.setdefault(function.__module__, []).append((function, ""))
    return function


def compile_all() -> None:
    """Compile every loop there is, or read it, now."""
    for module in list(_waiting):
        _compile(module)


def compile_module(name: str) -> None:
    """The same for the loops of one module, which may have none."""
    if name in _waiting:
        _compile(name)


def _compile(module: str) -> None:
    from numba import njit  # noqa: PLC0415 - a fifth of a second, for those who need it

    waiting, loops = _waiting.pop(module, []), []
    constants = _constants([function for function, _ in waiting])
    for function, signature in waiting:
        made: Any
        function.__module__ = __name__  # a policy file's module has a name of this process, and numba keeps it
        function.__qualname__ += constants  # numba keeps by file and name
        if not signature:
            made = njit(error_model="numpy")(function)
        else:
            try:
                made = njit(signature, cache=True, error_model="numpy")(function)
            except (RuntimeError, OSError):  # nowhere to write, or no room there
                made = njit(signature, error_model="numpy")(function)
            loops.append(made)
        function.__globals__[function.__name__] = made
    for made in loops:
        (only,) = made.overloads.values()
        made.py_func.__globals__[made.py_func.__name__] = _checking(made) if checked else only.entry_point


def _checking(loop: Callable[..., Any]) -> Callable[..., Any]:
    """The loop, with a look at its arguments: numba refuses what its signature does not say. It would refuse read-only
    arrays too, which a loop may be handed and must not write: each call gets copies of those, to be compared.
    """

    @wraps(loop)
    def call(*arguments: Any) -> Any:
        handed = [each.copy() if _is_read_only(each) else each for each in arguments]
        answer = loop(*handed)
        for place, (given, after) in enumerate(zip(arguments, handed, strict=True)):
            if given is not after and given.tobytes() != after.tobytes():
                raise TypeError(f"{loop.__name__} writes into its argument {place}, which it was handed read-only")
        return answer

    return call


def _is_read_only(argument: Any) -> bool:
    flags = getattr(argument, "flags", None)
    return flags is not None and not flags.writeable and bool(flags.c_contiguous)


def _constants(functions: Sequence[Callable[..., Any]]) -> str:
    """A mark of what these functions are and of the numbers that they find outside of themselves: both are compiled in,
    as they are now, and a function's file may have been changed since it was read.
    """
    found = {
        (name, repr(value))
        for function in functions
        for name in function.__code__.co_names
        if isinstance(value := function.__globals__.get(name), int | float | tuple)
    }
    codes = [
        (code.co_code, [repr(each) for each in code.co_consts if isinstance(each, int | float | str | tuple)])
        for code in (function.__code__ for function in functions)
    ]
    return f"_{sha256(repr((sorted(found), codes)).encode()).hexdigest()[:12]}"
