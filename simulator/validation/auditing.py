"""Side effects of a policy during its decisions: files, sockets, processes, threads, and state between calls.

Relies on the interpreter's audit events (PEP 578) and on module names: a policy's own code is in ``policies`` or was
loaded from a file (``router/loading.py``). Does not look at the decisions. The syntax was checked before
(``policies/_purity.py``); this finds what no name shows. Reading a clock raises no event: only the syntax check finds
that.
"""

import sys
from collections.abc import Callable, Iterator
from inspect import currentframe, isclass, isfunction, ismodule
from threading import get_ident
from typing import Any, Final, TypeVar

from policies._purity_rules import NOTHING, PURE
from router.core.errors import PolicyRejected

_Made = TypeVar("_Made")
_EVENTS: Final = (
    *("open", "import", "socket.", "subprocess.", "os.", "shutil.", "tempfile.", "glob.", "pathlib.", "urllib."),
    *("http.", "ftplib.", "smtplib.", "sqlite3.", "ctypes.", "mmap.", "fcntl.", "signal.", "_thread.start", "winreg."),
    *("msvcrt.", "webbrowser.", "syslog.", "resource.", "pty.", "sys.addaudithook", "sys.settrace", "sys.setprofile"),
)
_OF_POLICIES: Final = ("_policy_", "policies.routing.", "policies.admission.", "policies.scaling.")
_OF_THE_INTERPRETER: Final = frozenset(  # they open files on their own account
    [
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "linecache",
        "warnings",
        "zipimport",
    ]
)


class _Watch:
    """The one audit hook of this process, which cannot be removed again. It acts only while a policy decides."""

    def __init__(self) -> None:
        self.installed = False
        self.thread = 0  # in which a policy decides now; 0: none
        self.caught: list[str] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raises PolicyRejected inside the policy's call."""
        if self.thread != get_ident() or not event.startswith(_EVENTS):
            return
        place = _place(direct=event == "import")
        if place and not (event == "import" and str(arguments[0]) in PURE):
            shown = ", ".join(repr(each) for each in arguments[:1])
            self.caught.append(f"{place}: {event}({shown[:200]}); {NOTHING}")
            raise PolicyRejected(self.caught[-1])


_watch: Final = _Watch()


def watched(act: Callable[[], _Made]) -> _Made:
    """The result of *act*. Raises PolicyRejected, with file and line, if a policy had a side effect meanwhile, even if
    it caught the error.
    """
    if not _watch.installed:
        _watch.installed = True
        sys.addaudithook(_watch.hook)
    around, _watch.thread = _watch.thread, get_ident()
    try:
        made = act()
    finally:
        _watch.thread = around
        caught, _watch.caught = _watch.caught, []
        if caught:
            raise PolicyRejected(caught[0])  # even if the policy caught it
    return made


def _place(*, direct: bool) -> str:
    """``file:line`` of the policy's code that led to the event; empty if there is none, or if the interpreter caused
    it. *direct*: only if no other code is in between.
    """
    frame = currentframe()
    frame = frame.f_back.f_back if frame and frame.f_back else None  # skip the hook
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_OF_POLICIES):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if direct or module in _OF_THE_INTERPRETER:
            return ""
        frame = frame.f_back
    return ""


def state_of(policy: Any) -> dict[str, str]:
    """Everything a policy could keep between calls, by name, as text: its fields, its class, its module, and what its
    methods close over. If it differs after a decision, the policy has state.
    """
    kind = type(policy)
    module = sys.modules.get(kind.__module__)
    state = {f"a field of {kind.__name__}": repr((policy, getattr(policy, "__dict__", None)))}
    if module is not None and kind.__module__.startswith(_OF_POLICIES):
        for name, value in vars(module).items():
            if isclass(value) and value.__module__ == module.__name__:
                state |= _of_class(value)
            elif not (name.startswith("__") or callable(value) or ismodule(value)):
                state[name] = repr(value)
    return state | _of_class(kind)


def _of_class(kind: type) -> dict[str, str]:
    return {f"{kind.__name__}.{name}": repr(value) for name, value in _members(kind)}


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(kind).items():
        if isfunction(value):
            yield (
                name,
                (value.__defaults__, [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]),
            )
        elif not (name.startswith("__") or callable(value)):
            yield name, value


def _is_filled(cell: Any) -> bool:
    try:
        return not callable(cell.cell_contents)
    except ValueError:  # still empty
        return False


def check_state(before: dict[str, str], policy: Any) -> None:
    """Raise PolicyRejected, naming what has changed since ``state_of`` returned *before*."""
    after = state_of(policy)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise PolicyRejected(f"changes {changed[0]} during a decision; a policy must not change between calls")
