"""Our scheduler in worlds that vLLM's own scheduler has walked, and the command that walks them."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.run.scheduler_worlds import read_worlds
from simulator.run.stepping import Walk, walk_world
from tests.commands import simulator_command
from tests.scheduler import random_worlds, record

SMALL: dict[str, Any] = {"block_tokens": 4, "step_tokens": 16, "seqs_max": 4, "kv_blocks": 8}


def walked(tmp_path: Path, worlds: list[dict[str, Any]], coalesce: bool = False) -> list[Walk]:
    """What happens in these worlds."""
    path = tmp_path / "worlds.json"
    path.write_text(json.dumps(worlds))
    return [walk_world(world, coalesce) for world in read_worlds(path)]


def request(name: str, at: float, prompt: int, output: int, **more: Any) -> dict[str, Any]:
    """One of a world."""
    return {"id": name, "at": at, "prompt": prompt, "output": output, **more}


def ended(walk: Walk) -> dict[str, list[float]]:
    """By request: first token, end, preemptions."""
    return {name: [r["first"], r["end"], r["preemptions"]] for name, r in walk.requests.items()}


@pytest.mark.parametrize("coalesce", [False, True], ids=["stepwise", "coalesced"])
def test_every_recorded_world_is_walked_as_the_engine_walked_it(tmp_path: Path, coalesce: bool) -> None:
    """First token, end and preemptions of every request, in each of the recorded worlds."""
    recorded = json.loads(record.RECORD.read_text())["worlds"]
    walks = walked(tmp_path, [one["world"] for one in recorded], coalesce)
    assert [ended(walk) for walk in walks] == [one["happened"] for one in recorded]
    assert sum(any(p for _, _, p in one["happened"].values()) for one in recorded) > 30


def test_both_walks_agree_in_new_worlds(tmp_path: Path) -> None:
    """Many steps at once or one at a time: the same times, with every option."""
    worlds = random_worlds.worlds(150, 77)
    plain, quick = walked(tmp_path, worlds), walked(tmp_path, worlds, True)
    assert [walk.requests for walk in plain] == [walk.requests for walk in quick]


def test_a_prompt_is_admitted_only_where_all_of_it_fits(tmp_path: Path) -> None:
    """The first chunk would fit beside the other; the whole does not: no preemption, no token computed twice."""
    requests = [request("grows", 0, 8, 16), request("waits", 0, 28, 2)]
    (walk,) = walked(tmp_path, [{**SMALL, "step_tokens": 8, "requests": requests}])
    assert ended(walk) == {"grows": [1, 16, 0], "waits": [20, 21, 0]}
    (early,) = walked(tmp_path, [{**SMALL, "step_tokens": 8, "reserve_prompt": False, "requests": requests}])
    assert sum(p for _, _, p in ended(early).values()) > 0


def test_an_earlier_version_admits_by_the_first_chunk(tmp_path: Path) -> None:
    """--engine vllm@0.9 is vLLM before it reserved whole prompts, for worlds that do not state it."""
    requests = [request("grows", 0, 8, 16), request("waits", 0, 28, 2)]
    path = tmp_path / "worlds.json"
    path.write_text(json.dumps([{**SMALL, "step_tokens": 8, "requests": requests}]))
    old, new = (
        json.loads(simulator_command(["steps", str(path), "--engine", engine, "--json", "-"]).stdout)[0]["requests"]
        for engine in ("vllm@0.9", "vllm@0.32")
    )
    assert (old["waits"]["preemptions"] > 0, new["waits"]["preemptions"]) == (True, 0)


def test_what_a_preempted_request_had_computed_is_found_again(tmp_path: Path) -> None:
    """Its full blocks are free and hold their text until others take them: one of three, the last, has been taken."""
    requests = [request("older", 0, 12, 6), request("younger", 0, 12, 12)]
    (walk,) = walked(tmp_path, [{**SMALL, "kv_blocks": 7, "requests": requests}])
    again = [step.prefilling for step in walk.steps if any("younger" in chunk for chunk in step.prefilling)]
    assert walk.requests["younger"]["preemptions"] == 1
    assert again[-1][0].endswith("@8")
    (forgets,) = walked(tmp_path, [{**SMALL, "kv_blocks": 7, "prefix_caching": False, "requests": requests}])
    assert forgets.requests["younger"]["preemptions"] == 1
    assert [s.prefilling for s in forgets.steps if s.prefilling][-1][0].endswith("@0")


def test_a_request_that_preempts_itself_leaves_those_after_it_without_a_token(tmp_path: Path) -> None:
    """By priority the victim may be the one that wants a block: vLLM ends the step's round there."""
    requests = [request("idle", 0, 8, 9, priority=2), request("urgent", 0, 9, 20, priority=0)]
    worlds = [{**SMALL, "kv_blocks": 7, "priority": True, "requests": requests}]
    (walk,) = walked(tmp_path, worlds)
    assert walk.requests["idle"]["preemptions"] >= 1
    (quick,) = walked(tmp_path, worlds, True)
    assert quick.requests == walk.requests


def test_a_step_in_which_nobody_has_a_token_is_shown_and_not_written(tmp_path: Path) -> None:
    """The first in the batch preempted itself, and nobody was before it: the round ends there, the time passes."""
    requests = [request("idle", 0, 8, 20, priority=2), request("urgent", 1, 8, 20, priority=0)]
    (walk,) = walked(tmp_path, [{**SMALL, "priority": True, "requests": requests}])
    (empty,) = [step for step in walk.steps if not step.tokens]
    assert empty.preempted == ["idle"]
    assert all(tokens for _, tokens in walk.document()["steps"])
    assert len(walk.document()["steps"]) == len(walk.steps) - 1


def test_a_long_prompt_is_cut_while_others_are_there(tmp_path: Path) -> None:
    """long_prompt_chunk bounds a prompt's part of the step, unless it is alone."""
    alone = [request("long", 0, 30, 2)]
    both = [request("long", 0, 30, 2), request("short", 0, 6, 2)]
    limits = {**SMALL, "kv_blocks": 30, "long_prompt_chunk": 5}
    first, second = walked(tmp_path, [{**limits, "requests": alone}, {**limits, "requests": both}])
    assert [step.tokens for step in first.steps][:2] == [{"long": 16}, {"long": 14}]
    assert [step.tokens for step in second.steps][:2] == [{"long": 5, "short": 5}, {"long": 5, "short": 1}]


WRONG = [
    ('[{"block_tokens"', r"worlds.json:1:17: expected JSON"),
    ("{}", "expected a list of worlds, got dict"),
    ("[3]", "world 0: expected an object, got int"),
    ([{}], "world 0: block_tokens is missing"),
    ([SMALL], "world 0: requests is missing"),
    ([{**SMALL, "requests": [], "kv_block": 3}], "world 0: kv_block is not known; did you mean kv_blocks?"),
    ([{**SMALL, "requests": [], "seqs_max": 0}], "world 0: seqs_max must be at least 1, got 0"),
    ([{**SMALL, "requests": [], "priority": 1}], "world 0: priority must be true or false, got 1"),
    ([{**SMALL, "requests": [], "watermark": 1.5}], "world 0: watermark must be 0 or more and less than 1"),
    ([{**SMALL, "requests": [], "active_max": 9}], r"world 0: active_max must be between 0 and seqs_max \(4\)"),
    ([{**SMALL, "requests": {}}], "world 0: requests must be a list, got dict"),
    ([{**SMALL, "requests": [request("a", 0, 0, 1)]}], "world 0: request 0: prompt must be at least 1, got 0"),
    ([{**SMALL, "requests": [request("a", -1, 1, 1)]}], "request 0: at must be 0 or more and finite"),
    ([{**SMALL, "requests": [request("a", 0, 30, 4)]}], r"request 0: prompt \+ output must be at most 33"),
    ([{**SMALL, "requests": [request("", 0, 1, 1)]}], "request 0: id must be a text that is not empty"),
    ([{**SMALL, "requests": [request("a", 0, 4, 1, depth=2, unit=4)]}], "depth x unit must be at most prompt"),
    ([{**SMALL, "requests": [request("a", 0, 1, 1)] * 2}], "request 1: id 'a' is there twice"),
    ([{**SMALL, "requests": [request("a", 2, 1, 1), request("b", 1, 1, 1)]}], "request 1: at must be 2 or later"),
    ([{**SMALL, "requests": [request("a", 0, 1, 1, priority="x")]}], "priority must be a whole number, got 'x'"),
]


@pytest.mark.parametrize(("text", "error"), WRONG)
def test_an_error_names_the_place(tmp_path: Path, text: object, error: str) -> None:
    """World, request and field, and what was expected."""
    path = tmp_path / "worlds.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=error):
        read_worlds(path)


def test_the_command_prints_a_line_a_step_or_writes_what_happened(tmp_path: Path) -> None:
    """For people, and in the form of the engine's own walk."""
    path = tmp_path / "worlds.json"
    path.write_text(json.dumps([{**SMALL, "requests": [request("a", 0.5, 20, 2), request("b", 0.5, 3, 1)]}]))
    shown = simulator_command(["steps", str(path)])
    assert shown.exit_code == 0
    assert "prefill a:4@16 b:3@0" in shown.stdout
    assert "a: first 2.5, end 3.5, preemptions 0" in shown.stdout
    assert simulator_command(["steps", str(path), "--quiet"]).stdout == ""
    written = simulator_command(["steps", str(path), "--json", "-"])
    (document,) = json.loads(written.stdout)
    assert document["steps"] == [[1.5, {"a": 16}], [2.5, {"a": 4, "b": 3}], [3.5, {"a": 1}]]
    assert document["requests"]["b"] == {"first": 2.5, "end": 2.5, "preemptions": 0}
    (quick,) = json.loads(simulator_command(["steps", str(path), "--coalesced", "--json", "-"]).stdout)
    assert quick == {"requests": document["requests"], "steps": []}
    unknown = simulator_command(["steps", str(path), "--engine", "vlm@0.9"])
    assert unknown.exit_code == 2
    assert "did you mean 'vllm'" in unknown.stderr
    wrong = simulator_command(["steps", str(path), "--world", "1"])
    assert wrong.exit_code == 2
    assert "there are worlds 0 to 0, no world 1" in wrong.stderr


# ---- what further options do -------------------------------------------------------------


def test_choices_are_sequences_over_one_prompt(tmp_path: Path) -> None:
    """Those of a request find its whole blocks in the cache, end together as the last does, and count as many."""
    worlds = [{**SMALL, "kv_blocks": 30, "requests": [request("a", 0, 12, 3, n=3), request("b", 0, 4, 1)]}]
    (walk,) = walked(tmp_path, worlds)
    assert walk.steps[0].prefilling == ["0_a:12@0", "1_a:4@8"]
    assert walk.requests["a"] == {"first": 1.0, "end": 4.0, "preemptions": 0}
    (quick,) = walked(tmp_path, worlds, True)
    assert quick.requests == walk.requests


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    """By unfinished requests, each choice one, or by the prompt tokens of those without a first token."""
    requests = [request("a", 0, 4, 9), request("b", 0.5, 20, 2), request("c", 0.6, 4, 2), request("d", 8.5, 4, 2, n=2)]
    limits = {**SMALL, "step_tokens": 8, "kv_blocks": 30}
    (counted,) = walked(tmp_path, [{**limits, "queue_max": 2, "requests": requests}])
    assert counted.requests["c"] == {"refused": 0.6}
    assert counted.requests["d"] == {"refused": 8.5}
    (weighed,) = walked(tmp_path, [{**limits, "queue_tokens_max": 24, "requests": requests}])
    assert weighed.requests["c"] == {"refused": 0.6}
    assert "end" in weighed.requests["d"]


def test_a_request_for_one_adapter_too_many_is_passed_over(tmp_path: Path) -> None:
    """Those behind it go ahead where theirs is there; it joins once one of the others has ended."""
    requests = [
        request("a", 0, 4, 6, adapter="x"), request("b", 0, 4, 2, adapter="y"), request("c", 0, 4, 2, adapter="x"),
        request("d", 0, 4, 1),
    ]  # fmt: skip
    (walk,) = walked(tmp_path, [{**SMALL, "kv_blocks": 30, "adapters_max": 1, "requests": requests}])
    assert {name: happened["first"] for name, happened in walk.requests.items()} == {"a": 1, "b": 7, "c": 1, "d": 1}
    (free,) = walked(tmp_path, [{**SMALL, "kv_blocks": 30, "requests": requests}])
    assert free.requests["b"]["first"] == 1


def test_adapters_share_no_prefix(tmp_path: Path) -> None:
    """The same text has another KV cache under another adapter."""
    shared = {"group": 1, "depth": 2, "unit": 4}
    requests = [request(name, at, 12, 1, adapter=name[0], **shared) for at, name in enumerate(("x1", "x2", "y1"))]
    (walk,) = walked(tmp_path, [{**SMALL, "kv_blocks": 30, "requests": requests}])
    assert [step.prefilling for step in walk.steps] == [["x1:12@0"], ["x2:4@8"], ["y1:12@0"]]


@pytest.mark.parametrize("coalesce", [False, True], ids=["stepwise", "coalesced"])
def test_a_step_that_is_decided_ahead_sees_arrivals_and_ends_a_step_later(tmp_path: Path, coalesce: bool) -> None:
    """Async scheduling: one more step until a request that comes beside others is in, or takes the room of another."""
    late = [request("a", 0, 4, 5), request("b", 0.5, 4, 1)]
    full = [request("a", 0, 4, 2), request("b", 0, 4, 9), request("c", 0, 4, 1)]
    alone = [request("a", 0, 4, 2), request("b", 1.5, 4, 1)]
    firsts = []
    for ahead in (False, True):
        worlds = [
            {**SMALL, "kv_blocks": 30, "async_scheduling": ahead, "seqs_max": most, "requests": requests}
            for most, requests in ((4, late), (2, full), (1, alone))
        ]
        walks = walked(tmp_path, worlds, coalesce)
        firsts.append([list(walk.requests.values())[-1]["first"] for walk in walks])
    assert firsts == [[2, 3, 3], [3, 4, 3]]


@pytest.mark.parametrize("coalesce", [False, True], ids=["stepwise", "coalesced"])
def test_an_end_that_nobody_foresaw_costs_a_step(tmp_path: Path, coalesce: bool) -> None:
    """Async scheduling: its next token is under way already, and the request behind it begins a step later."""
    firsts = []
    for eos in (False, True):
        requests = [request("a", 0, 4, 3, eos=eos), request("b", 0, 4, 1)]
        (walk,) = walked(tmp_path, [{**SMALL, "seqs_max": 1, "async_scheduling": True, "requests": requests}], coalesce)
        assert walk.requests["a"]["end"] == 3
        firsts.append(walk.requests["b"]["first"])
    assert firsts == [4, 5]
