"""What a policy's source may not hold: each is refused with its line, before any of it runs."""

from pathlib import Path

import pytest

from policies._purity import faults
from router import loading
from router.loading import Source

ROOT = Path(__file__).parents[2]
HEAD = """from dataclasses import dataclass
import functools, heapq, statistics
import numpy as np
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng
{module}
@dataclass(frozen=True)
class Mine:
    among: int = 1
    {field}
    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        {body}
        return Dispatch(int(fleet.slots[0]), "the first")

policy = Mine
"""
MODULE, BODY = 5, 11  # lines


def text(module="", field="", body="pass"):
    """A policy with these lines in its module, its class and its verb."""
    return HEAD.format(module=module, field=field, body=body)


IMPURE = {
    "time": ({"module": "import time"}, MODULE, "imports time; expected .*: the time is fleet.now_s"),
    "time inside": ({"body": "from time import time; time()"}, BODY, "imports time; .*the time is fleet.now_s"),
    "datetime": ({"module": "from datetime import datetime"}, MODULE, "imports datetime"),
    "open": ({"body": "open('x')"}, BODY, "uses open; a policy reads and writes nothing"),
    "print": ({"body": "print('x')"}, BODY, "uses print"),
    "socket": ({"module": "import socket"}, MODULE, "imports socket"),
    "subprocess": ({"module": "import subprocess"}, MODULE, "imports subprocess"),
    "threads": ({"module": "from threading import Thread"}, MODULE, "imports threading"),
    "random": ({"module": "import random"}, MODULE, r"imports random; .*the only chance is rng\.random\(\)"),
    "numpy's random": ({"body": "np.random.random()"}, BODY, "uses numpy.random; the only chance is rng"),
    "another's random": ({"body": "statistics.random.random()"}, BODY, "imports statistics.random"),
    "numpy's files": ({"body": "np.load('x')"}, BODY, "uses numpy.load"),
    "numpy by another name": ({"body": "n = np; n.random.random()"}, BODY, "hands np on, a module"),
    "environment": ({"body": "import os; os.environ['X']"}, BODY, "imports os; .*parameters"),
    "a file beside": ({"module": "from helpers import x"}, MODULE, "imports helpers"),
    "a relative import": ({"module": "from . import x"}, MODULE, r"imports \."),
    "deeper than the core": ({"module": "from router.core.ledger import Ledger"}, MODULE, "imports router.core.ledger"),
    "a part of the core": ({"module": "from router.core import kernels"}, MODULE, "expected a name of router.core's"),
    "the package": ({"module": "import router.core"}, MODULE, "imports router.core; expected 'from router.core"),
    "the gateway": ({"module": "from router.gateway import app"}, MODULE, "imports router.gateway"),
    "the checks": ({"module": "from policies._worlds import scene"}, MODULE, "imports policies._worlds"),
    "global counter": ({"module": "N = 0", "body": "global N; N += 1"}, BODY, "has state: global N"),
    "closure": ({"body": "n = 0\n        def f():\n            nonlocal n"}, BODY + 2, "has state: nonlocal n"),
    "module list": ({"module": "SEEN = [0]", "body": "SEEN.append(1)"}, BODY, r"calls SEEN\.append\(\)"),
    "module list by index": ({"module": "SEEN = [0]", "body": "SEEN[0] += 1"}, BODY, r"writes SEEN\[0\]"),
    "module list renamed": ({"module": "S = [0]", "body": "s = S; s.append(1)"}, BODY, r"calls s\.append\(\)"),
    "module heap": ({"module": "H = [0]", "body": "heapq.heappush(H, 1)"}, BODY, "calls heapq.heappush"),
    "module array": ({"module": "A = np.ones(1)", "body": "np.add(A, 1, out=A)"}, BODY, "writes A"),
    "empty module list": ({"module": "SEEN = []"}, MODULE, r"keeps \[\] between calls"),
    "module iterator": ({"module": "N = iter(range(9))"}, MODULE, "keeps an iterator between calls"),
    "lru_cache": ({"module": "from functools import lru_cache"}, MODULE, "uses functools.lru_cache; what was computed"),
    "functools.cache": ({"module": "f = functools.cache(len)"}, MODULE, "uses functools.cache"),
    "default": ({"module": "def f(x=[]): return x"}, MODULE, r"has a default \[\]"),
    "class counter": ({"field": "n = 0", "body": "Mine.n += 1"}, BODY, r"sets Mine\.n"),
    "class counter by type": ({"field": "n = 0", "body": "type(self).n += 1"}, BODY, r"sets type\(self\)\.n"),
    "class counter by self": ({"body": "self.__class__.n = 1"}, BODY, "sets self.__class__.n"),
    "class list": ({"field": "seen = [0]", "body": "self.seen.append(1)"}, BODY, r"calls self\.seen\.append\(\)"),
    "field": ({"body": "self.among = 2"}, BODY, r"sets self\.among"),
    "frozen field": ({"body": "object.__setattr__(self, 'among', 2)"}, BODY, "uses .__setattr__"),
    "a price": ({"body": "fleet.price_per_s[:] = 0"}, BODY, r"writes fleet\.price_per_s\[:\]: an argument"),
    "the ledger": ({"body": "fleet._ledger.join"}, BODY, "uses fleet._ledger; names that begin with an underscore"),
    "the ledger by getattr": ({"body": "getattr(fleet, '_ledger')"}, BODY, "uses getattr"),
    "the ledger by a pattern": (
        {"body": "match fleet:\n            case Fleet(_ledger=x): pass"}, BODY + 1, "reads _ledger by a pattern"
    ),
    "the ledger in a lambda": ({"body": "(lambda: fleet._ledger)()"}, BODY, "uses fleet._ledger"),
    "a forecast": ({"body": "forecast.rows[0, 0] = 0"}, BODY, r"writes forecast\.rows\[0, 0\]: an argument"),
    "a flag": ({"body": "fleet.load.flags.writeable = True"}, BODY, "uses .flags|sets fleet.load.flags"),
    "the clock it is shown": ({"body": "fleet.now_s = 0"}, BODY, r"sets fleet\.now_s: an argument"),
    "out=": ({"body": "np.add(1, 1, out=fleet.load)"}, BODY, "writes fleet.load: an argument"),
    "eval": ({"body": "eval('1')"}, BODY, "uses eval"),
    "import by name": ({"body": "__import__('time')"}, BODY, "uses __import__"),
    "hash": ({"body": "hash(request.id)"}, BODY, "uses hash; .*hash64 of router.core"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "line", "words"), IMPURE.values(), ids=IMPURE)
def test_what_is_impure_is_refused_with_its_line(parts, line, words, tmp_path):
    """By ``read``, which the gateway, ``check`` and the simulator read a file with."""
    path = tmp_path / "mine.py"
    path.write_text(text(**parts), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"mine\.py:{line}: .*{words}"):
        loading.read(path)


PURE = {
    "nothing": {},
    "local lists": {"body": "x = [1]; x.append(2); x.sort(); heapq.heappush(x, 3)"},
    "local arrays": {"body": "a = fleet.load.copy(); a[0] = 1.0; np.add(a, 1.0, out=a); a.sort()"},
    "constants": {"module": "TABLE = {'a': 1}\nN = 3\nNAMES = ('a', 'b')", "body": "TABLE.get('a', N)"},
    "a table that is built": {"module": "TABLE = {'a': 1}\nfor n in 'bc':\n    TABLE[n] = 2"},
    "numpy's parts": {"body": "np.linalg.norm(np.sort(fleet.load))"},
    "helpers": {"module": "def fill(out):\n    out[0] = 1.0\n    return out", "body": "fill(np.zeros(3))"},
    "shared parts": {"module": "from policies.routing._pick import lowest", "body": "lowest(fleet.requests, rng)"},
    "getattr": {"body": "getattr(fleet, 'load')"},
    "own methods": {"field": "def _add(self, x): return x", "body": "self._add(1)"},
    "own init": {"field": "def __post_init__(self):\n        object.__setattr__(self, 'among', 2)"},
    "names like a builtin": {"body": "id = 1; request.prefix.count(id)"},
    "rows": {"module": "from router.core import TTFT\ndef f(x):\n    return x + TTFT"},
    "partial": {"body": "functools.reduce(max, (1, 2))"},
}


@pytest.mark.parametrize("parts", PURE.values(), ids=PURE)
def test_what_is_pure_is_taken(parts):
    """No false alarm."""
    loading.check(Source("mine.py", text(**parts)))


FILES = sorted((ROOT / "policies").glob("*/*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_policies_here_are_held_to_the_same(path):
    """Also what they share. Loops that exist in C too need more of the core than a policy does: see pyproject.toml."""
    assert faults(path.read_text(encoding="utf-8"), built_in=path.stem in ("_headroom", "_loops")) == []


def test_what_a_policy_imports_from_the_folder_is_checked_too(tmp_path, monkeypatch):
    """By its source, without importing it."""
    folder = tmp_path / "policies"
    (folder / "routing").mkdir(parents=True)
    (folder / "routing" / "_helper.py").write_text("x = 1\nimport time\n", encoding="utf-8")
    (folder / "routing" / "named.py").write_text("from policies.routing import _helper\n", encoding="utf-8")
    monkeypatch.setattr(loading.policies, "__file__", str(folder / "__init__.py"))
    for refused in (
        lambda: loading.check(Source("mine.py", "from policies.routing._helper import x\n")),
        lambda: loading.check_named("routing", "named"),
    ):
        with pytest.raises(ValueError, match=r"_helper\.py:2: imports time"):
            refused()
    loading.check_named("routing", "not there")


def test_nothing_of_a_refused_file_is_executed():
    """Not even where it is loaded without having been read."""
    source = Source("mine.py", text(module="1 / 0", body="open('x')"))
    with pytest.raises(ValueError, match=r"mine\.py:11: uses open"):
        loading.load("routing", source, {})


def test_all_faults_are_counted():
    """The first is told."""
    with pytest.raises(ValueError, match=r"mine\.py:1: imports time; .* \(and 1 more\)"):
        loading.check(Source("mine.py", "import time\nimport os\n"))
