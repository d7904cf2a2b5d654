"""Side effects of a policy are found during its decisions, changes of its state after them."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from router.core.errors import PolicyRejected
from simulator.validation.auditing import check_state, state_of, watched
from tests.policy_files import policy_text

PLACE = "policies.routing.made_up"


def loaded(text: str) -> ModuleType:
    """A module that counts as a policy's, of a source that nothing checked."""
    module = ModuleType(PLACE)
    exec(compile(text, "mine.py", "exec"), vars(module))
    return module


@pytest.fixture
def module_of(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The same, where its classes look for it."""

    def made(text: str) -> ModuleType:
        module = ModuleType(PLACE)
        monkeypatch.setitem(sys.modules, PLACE, module)
        exec(compile(text, "mine.py", "exec"), vars(module))
        return module

    return made


OUTSIDE = {
    "open": "open('nothing')",
    "numpy's files": "import numpy\n    numpy.fromfile('nothing')",
    "socket": "import socket\n    socket.socket()",
    "resolver": "import socket\n    socket.getaddrinfo('localhost', 1)",
    "subprocess": "import subprocess\n    subprocess.run(['true'])",
    "os.listdir": "import os\n    os.listdir('.')",
    "os.system": "import os\n    os.system('true')",
    "environment": "import os\n    os.putenv('A', 'b')",
    "import": "import this",
    "caught": "\n    try:\n        open('nothing')\n    except BaseException: pass",
}


@pytest.mark.parametrize("does", OUTSIDE.values(), ids=OUTSIDE)
def test_what_reaches_outside_is_refused_with_its_line(does: str) -> None:
    """Whatever the policy makes of the refusal itself."""
    choose = loaded(f"def choose():\n    {does}\n    return 1\n").choose
    with pytest.raises(PolicyRejected, match=r"^mine\.py:\d: [a-z_.A-Z]+\(.*\); a policy reads and writes nothing"):
        watched(choose)


def test_what_the_interpreter_and_others_do_meanwhile_is_not_the_policys(tmp_path: Path) -> None:
    """A warning reads the source to show it, an import of what is pure reads files, a caller has files of its own."""
    choose = loaded(
        "import warnings\ndef choose(act):\n    import textwrap\n    warnings.warn('x')\n    return act\n"
    ).choose
    (tmp_path / "x").write_text("x")
    sys.modules.pop("textwrap", None)
    with pytest.warns(UserWarning, match="x"):
        assert watched(lambda: choose(3)) == 3
    assert watched((tmp_path / "x").read_text) == "x"


def test_nothing_is_looked_at_while_no_policy_is_asked() -> None:
    """The hook stays in the process; it answers for the calls that are watched."""
    choose = loaded("def choose():\n    return open('/dev/null').close()\n").choose
    with pytest.raises(PolicyRejected):
        watched(choose)
    assert choose() is None


STATEFUL = {
    "a module's list": ("SEEN = [0]", "", "(lambda s: s.append(1))(SEEN)", "SEEN"),
    "a class's list": ("", "seen = [0]", "s, = [self.seen]\n        s.append(1)", r"Mine\.seen"),
    "a field": ("", "def __init__(self):\n        self.x = [0]", "for s in [self.x]: s.append(1)", "a field of Mine"),
    "a closure": ("", "n = 0", "self.count(None)", r"Mine\.count"),
}


@pytest.mark.parametrize(("module", "field", "body", "what"), STATEFUL.values(), ids=STATEFUL)
def test_state_that_no_name_shows_is_found_by_comparison(module_of, module, field, body, what) -> None:  # type: ignore[no-untyped-def]
    """Of a module, a class, an object and a closure."""
    text = f"{module}\nclass Mine:\n    {field}\n    def choose(self):\n        {body}\n        return 1\n"
    text += "def counting():\n    seen = [0]\n    def count(self, x): seen.append(1)\n    return count\n"
    policy = module_of(text + "Mine.count = counting()\n").Mine()
    before = state_of(policy)
    check_state(before, policy)
    policy.choose()
    with pytest.raises(PolicyRejected, match=f"changes {what} during a decision"):
        check_state(before, policy)


def test_a_sound_policy_has_no_state(module_of) -> None:  # type: ignore[no-untyped-def]
    """Asked or not."""
    policy = module_of(policy_text("good")).policy()
    check_state(state_of(policy), policy)
