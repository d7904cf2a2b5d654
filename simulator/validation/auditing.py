"""What a policy does beside answering, seen while it is asked: files, sockets, processes, threads, and what it keeps.

Believes: the interpreter's audit events (PEP 578), and the names of modules: a policy's own code is in ``policies`` or
was loaded from a file (``router/loading.py``). Must not know what it answers. The syntax was checked before
(``policies/_purity.py``); this finds what a name did not show. Clocks raise no event: the syntax alone finds those.
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
        "router.core.compiling",
    ]
)


class _Watch:
    """The one hook of this process, which cannot be taken away again; it looks only while a policy is asked."""

    def __init__(self) -> None:
        self.installed = False
        self.thread = 0  # that asks a policy now; 0: none
        self.caught: list[str] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """PolicyRejected out of what the policy tried."""
        if self.thread != get_ident() or not event.startswith(_EVENTS):
            return
        place = _place(direct=event == "import")
        if place and not (event == "import" and str(arguments[0]) in PURE):
            shown = ", ".join(repr(each) for each in arguments[:1])
            self.caught.append(f"{place}: {event}({shown[:200]}); {NOTHING}")
            raise PolicyRejected(self.caught[-1])


_watch: Final = _Watch()


def watched(act: Callable[[], _Made]) -> _Made:
    """What *act* gives; PolicyRejected, with file and line, when a policy reached outside meanwhile, caught or not."""
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
            raise PolicyRejected(caught[0])  # whatever the policy made of it
    return made


def _place(*, direct: bool) -> str:
    """``file:line`` of the policy's code that led here; empty when none did, or the interpreter did for itself.
    *direct*: only when no other code is between.
    """
    frame = currentframe()
    frame = frame.f_back.f_back if frame and frame.f_back else None  # beyond the hook
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_OF_POLICIES):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if direct or module in _OF_THE_INTERPRETER:
            return ""
        frame = frame.f_back
    return ""


def state_of(policy: Any) -> dict[str, str]:
    """All that a policy could keep between calls, by name, as text: its fields, its class, its module and what its
    methods close over. Equal before and after it was asked, or it has state.
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
    """PolicyRejected, naming what changed since ``state_of`` gave *before*."""
    after = state_of(policy)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise PolicyRejected(f"changes {changed[0]} while it is asked; a policy keeps nothing between calls")
