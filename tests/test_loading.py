"""A policy file from its source: what it may be, and what is said of one that is not."""

from pathlib import Path

import pytest

import policies
from router import loading
from router.loading import Source
from tests.policy_files import policy_file, policy_text

ROOT = Path(__file__).parent.parent


def test_a_file_is_a_policy_with_its_parameters(tmp_path: Path) -> None:
    """Made by its name ``policy``."""
    made = loading.load("routing", loading.read(policy_file(tmp_path, "good")), {"among": 3})
    assert made.among == 3


def test_a_dataclass_with_annotations_of_the_future_loads() -> None:
    """Dataclasses look their module up by name while they are made."""
    text = "from __future__ import annotations\nfrom dataclasses import dataclass, field\nimport typing\n"
    text += "@dataclass(frozen=True)\nclass P:\n    x: typing.ClassVar[int] = 1\n    y: int = 2\n"
    text += "    def choose(self, *a): ...\npolicy = P\n"
    assert loading.load("routing", Source("p.py", text), {}).y == 2


def test_an_edit_of_equal_size_in_the_same_second_is_seen(tmp_path: Path) -> None:
    """No byte code is read or written."""
    path = policy_file(tmp_path, "good")
    first = loading.load("routing", loading.read(path), {})
    path.write_text(policy_text("good").replace("among: int = 1", "among: int = 2"), encoding="utf-8")
    second = loading.load("routing", loading.read(path), {})
    assert (first.among, second.among) == (1, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def policy(:", r"p\.py:1: not valid Python"),
        ("x = 1\0", r"p\.py:1: not valid Python"),
        ("x = 1\ny = 1 / 0\n", r"p\.py:2: raised ZeroDivisionError: division by zero when loaded"),
        ("x = 1\n", r"p\.py: expected a name 'policy'"),
        ("def policy():\n    raise KeyError('k')\n", r"p\.py:2: policy\(\) raised KeyError"),
        ("def policy(): return 3\n", r"p\.py: int has no method 'choose'"),
        ("def policy(depth): return 3\n", r"routing policy p\.py"),
        ("def policy(dept=1): return 3\n", r"has no parameter 'depth'; did you mean 'dept'\?"),
        ("def policy(depth):\n    raise ValueError('depth must be even')\n", "depth must be even"),
    ],
)
def test_a_file_that_is_no_policy_says_why_and_where(text: str, words: str) -> None:
    """The file, its line where there is one, and what was expected."""
    parameters = {} if "(depth)" in text and "raise" not in text else {"depth": 3}
    with pytest.raises(ValueError, match=words):
        loading.load("routing", Source("p.py", text), parameters if "dep" in text else {})


@pytest.mark.parametrize(
    ("kind", "name", "parameters", "words"),
    [
        ("routing", "least_work", {"prefill_weight": "high"}, "prefill_weight must be a number like 1.0, not 'high'"),
        ("routing", "least_work", {"prefill_weight": True}, "prefill_weight must be a number like 1.0, not True"),
        ("routing", "slo_headroom", {"prefer": 1}, "prefer must be text like 'spread', not 1"),
        ("admission", "fair", {"early": "no"}, "early must be true or false like True, not 'no'"),
    ],
)
def test_a_parameter_of_another_kind_is_refused_by_name(
    kind: str, name: str, parameters: dict[str, object], words: str
) -> None:
    """Before it serves, not by the first request that it fails on."""
    with pytest.raises(ValueError, match=words):
        policies.find(kind, name, parameters)


def test_a_scaling_policy_cannot_be_a_file() -> None:
    """The autoscaler takes policies by name."""
    with pytest.raises(ValueError, match="only routing and admission"):
        loading.load("scaling", Source("p.py", "policy = dict"), {})


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(ValueError, match=r"none\.py: cannot be read"):
        loading.read(tmp_path / "none.py")
