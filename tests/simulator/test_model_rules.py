"""Models that serve others' requests, in a replay: the router's own code decides, and a trace states who allows it."""

import json
from pathlib import Path
from typing import Any

from tests.commands import simulator_command

POOL = """backends:
  - {name: b, card: a10, models: [big]}
  - {name: s, card: a10, models: [small]}
slo: chat:ttft=5s,tpot=200ms
"""
CRASH = "faults: [{at_s: 0, backend: b, kind: crash, for_s: 60}]\n"


def played(folder: Path, pool: str, *rows: dict[str, Any]) -> dict[str, Any]:
    """The figures of slo_headroom over these rows, a second apart."""
    base = {"prompt_tokens": 50, "output_tokens": 20, "model": "big"}
    lines = [json.dumps({"arrived_s": 5 + n, **base, **row}) for n, row in enumerate(rows)]
    (folder / "pool.yaml").write_text(pool, encoding="utf-8")
    (folder / "trace.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    words = ["replay", str(folder / "trace.jsonl"), "--pool", str(folder / "pool.yaml"), "--json", str(folder / "out")]
    made = simulator_command([*words, "--policy", "slo_headroom"])
    assert made.exit_code == 0, made.output
    figures: dict[str, Any] = json.loads((folder / "out").read_text(encoding="utf-8"))["runs"]["slo_headroom"]
    return figures


def test_a_replay_falls_back_where_a_row_allows_it(tmp_path: Path) -> None:
    """While the model's only engine is down; the others are refused as a router would."""
    rules = "models: {big: {fallback: [small]}}\n"
    rows = [{"fallback": "allow"}, {}, {"fallback": "deny"}, {"fallback": "allow"}]
    figures = played(tmp_path, POOL + CRASH + rules, *rows)
    assert (figures["served"], figures["shed_by_reason"]) == (2, {"no-backend": 2})
    assert figures["backends"]["s"]["share"] == 1.0


def test_a_replay_splits_by_session(tmp_path: Path) -> None:
    """As the gateway does, by the same hash."""
    rules = "models: {chat: {split: {big: 1, small: 1}}}\n"
    figures = played(tmp_path, POOL + rules, *({"model": "chat", "session": str(n % 8)} for n in range(16)))
    counts = [figures["backends"][name]["share"] * 16 for name in "bs"]
    assert figures["served"] == 16
    assert all(count and count % 2 == 0 for count in counts)


def test_what_a_router_has_split_is_not_split_again(tmp_path: Path) -> None:
    """A record has the model that was selected, which may be one of its own split."""
    pool, record = tmp_path / "pool.yaml", tmp_path / "record.jsonl"
    pool.write_text(POOL + "models: {big: {split: {big: 1, small: 1}}}\n", encoding="utf-8")
    events: list[dict[str, Any]] = []
    for n in range(8):
        asked = {"id": f"r{n}", "model": "big", "requested_model": "big", "prompt_tokens": 50, "streamed": True}
        events.append({"event": "arrived", "at_s": n, "request": asked})
        events.append({"event": "ended", "at_s": n + 0.5, "id": f"r{n}", "usage": {"output_tokens": 5}})
    record.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")
    words = ["replay", str(record), "--pool", str(pool), "--policy", "slo_headroom", "--json", str(tmp_path / "out")]
    made = simulator_command(words)
    assert made.exit_code == 0, made.output
    figures = json.loads((tmp_path / "out").read_text(encoding="utf-8"))["runs"]["slo_headroom"]
    assert (figures["served"], figures["backends"]["b"]["share"]) == (8, 1.0)


def test_wrong_rules_and_rows_are_refused_with_their_place(tmp_path: Path) -> None:
    """In a pool file as in router.yaml."""
    pool, trace = tmp_path / "pool.yaml", tmp_path / "trace.jsonl"
    pool.write_text(POOL + "models: {big: {fallback: [smal]}}\n", encoding="utf-8")
    trace.write_text(
        '{"arrived_s": 0, "prompt_tokens": 5, "output_tokens": 5, "fallback": "maybe"}\n', encoding="utf-8"
    )
    made = simulator_command(["replay", str(trace), "--pool", str(pool)])
    assert (made.exit_code, "pool.yaml:5: models.big.fallback[0]: no backend serves 'smal'" in made.output) == (2, True)
    pool.write_text(POOL, encoding="utf-8")
    made = simulator_command(["replay", str(trace), "--pool", str(pool)])
    assert made.exit_code
    assert "trace.jsonl:1: fallback must be allow or deny, got 'maybe'" in made.output
