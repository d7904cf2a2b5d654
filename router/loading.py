"""A user's own policy file: from source by path to a policy.

Believes: the text. Must not know who asks: the gateway, ``check`` and the simulator load with this. Before anything of
a file is executed its text is checked (``policies/_purity.py``): one that could read a clock or keep state is refused
with its line. A file is executed from its source each time (a ``.pyc`` may be older than an edit within the same
second) and under a name of its own in ``sys.modules``, where dataclasses look their module up; the oldest such names
go, their classes live on while used.
"""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, Final

import policies
from policies import _purity

VERBS: Final = {"routing": "choose", "admission": "admit"}
_KEPT: Final = 64  # modules in sys.modules at a time

_generations = count(1)
_names: deque[str] = deque()


@dataclass(frozen=True, slots=True)
class Source:
    """A policy file as it was read."""

    path: str
    text: str

    @property
    def version(self) -> str:
        """Names the text."""
        return sha256(self.text.encode()).hexdigest()[:12]


def read(path: Path) -> Source:
    """The file's text. ValueError when it cannot be read, is no Python or holds what a policy may not (``check``)."""
    try:
        source = Source(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: cannot be read: {problem}") from None
    check(source)
    return source


def check(source: Source) -> None:
    """Refuse what a policy may not do, without executing any of it: ValueError names the file, the line and what was
    expected. What it imports from ``policies`` is held to the same.
    """
    _compiled(source)
    found = _purity.examined(source.text)
    _check(source, found.faults)
    for part in found.parts:
        _check_part(part, set())


def check_named(kind: str, name: str) -> None:
    """The same for a policy of the folder ``policies`` and what it imports there; a name that is none has no fault."""
    _check_part(f"policies.{kind}.{name}", set())


def _check(source: Source, found: Sequence[_purity.Fault]) -> None:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"{source.path}:{found[0].line}: {found[0].what}{more}")


def _check_part(name: str, seen: set[str]) -> None:
    """A module of ``policies`` by its source, wherever compiled code stands for it; nothing is imported."""
    path = Path(policies.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    if name in seen or not path.is_file():
        return
    seen.add(name)
    source = Source(str(path), path.read_text(encoding="utf-8"))
    found = _purity.examined(source.text, built_in=True)
    _check(source, found.faults)
    for part in found.parts:
        _check_part(part, seen)


def load(kind: str, source: Source, parameters: Mapping[str, Any]) -> Any:
    """Execute the source and make its policy. ValueError names the file, and the line where there is one:
    nothing is executed of a source that ``check`` refuses.
    """
    if kind not in VERBS:
        raise ValueError(f"a {kind} policy cannot be a file; only {' and '.join(VERBS)} policies can")
    check(source)
    module = _executed(source)
    make = getattr(module, "policy", None)
    if not callable(make):
        wanted = "a class or a function that returns the policy"
        raise ValueError(f"{source.path}: expected a name 'policy': {wanted}")  # noqa: TRY004 - a bad file
    try:
        made = policies.build(f"{kind} policy {source.path}", make, parameters)
    except ValueError:
        raise
    except Exception as problem:  # the file is anybody's code
        raise ValueError(f"{_place(source, problem)}: policy() raised {_told(problem)}") from problem
    if not callable(getattr(made, VERBS[kind], None)):
        what = f"{type(made).__name__} has no method {VERBS[kind]!r}"
        raise ValueError(f"{source.path}: {what}, which a {kind} policy needs")  # noqa: TRY004 - a bad file
    return made


def _compiled(source: Source) -> Any:
    try:
        return compile(source.text, source.path, "exec", dont_inherit=True)
    except SyntaxError as problem:
        raise ValueError(f"{source.path}:{problem.lineno or 1}: not valid Python: {problem.msg}") from None
    except ValueError as problem:  # a null byte
        raise ValueError(f"{source.path}:1: not valid Python: {problem}") from None


def _executed(source: Source) -> ModuleType:
    code = _compiled(source)
    module = ModuleType(f"_policy_{Path(source.path).stem}_{next(_generations)}")
    module.__file__ = source.path
    sys.modules[module.__name__] = module
    try:
        exec(code, vars(module))
    except Exception as problem:  # the file is anybody's code
        del sys.modules[module.__name__]
        raise ValueError(f"{_place(source, problem)}: raised {_told(problem)} when loaded") from problem
    _names.append(module.__name__)
    if len(_names) > _KEPT:
        sys.modules.pop(_names.popleft(), None)
    return module


def _place(source: Source, problem: BaseException) -> str:
    """``file:line`` of the innermost line of the user's own file."""
    lines = [frame.lineno for frame in extract_tb(problem.__traceback__) if frame.filename == source.path]
    return f"{source.path}:{lines[-1]}" if lines else source.path


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"
