"""What an engine is started with, as a pool states it: adapters, precision of the KV cache, limits of its queue."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.core.errors import ConfigError
from simulator.experiment import Case, Source
from simulator.pool import Member, Pool
from simulator.pool_file import load_pool
from simulator.replica.sequence import Sequence
from simulator.run.choices import multiply
from tests import fakes

LINE = "backends:\n  - {{name: a, card: l4, model: llama-3-8b{}}}\n"


def pool(folder: Path, more: str = "") -> Pool:
    path = folder / "pool.yaml"
    path.write_text(LINE.format(more))
    return load_pool(path)


def test_a_smaller_kv_precision_holds_more_and_reads_less(tmp_path: Path) -> None:
    """FP8 halves the bytes of a token: twice the tokens, half of the time that reading the context takes."""
    [plain], [small] = pool(tmp_path).sites(0), pool(tmp_path, ", kv_precision: fp8").sites(0)
    assert small.backend.kv_tokens_max == pytest.approx(2 * plain.backend.kv_tokens_max, rel=0.01)
    assert small.backend.prior.context_s < 0.7 * plain.backend.prior.context_s
    with pytest.raises(ConfigError, match="fp7"):
        pool(tmp_path, ", kv_precision: fp7")


def test_a_queue_of_prompt_tokens_is_bounded() -> None:
    """Requests beyond it are refused by the engine, and fewer wait there."""
    source = Source(("gen:poisson:rate=40,requests=60,prompt=2000,output=20",))
    member = Member("a", "l4")
    open_, bounded = (
        Case(source, Pool((each,)), "round_robin").play().table
        for each in (member, replace(member, queue_tokens_max=8_000))
    )
    assert open_.served().all()
    assert 5 <= bounded.served().sum() < 40


def test_of_several_choices_each_ends_by_itself_unless_the_cap_ends_it() -> None:
    """With async scheduling such an end costs a token more, of every choice."""
    listener: Any = None
    for foreseen, output, expected in (
        (False, 15, [True, True]),
        (True, 15, [False, False]),
        (True, 14, [False, True]),
    ):
        first = Sequence("a", 10, 5, 1)
        first.ends_itself = not foreseen
        multiply(first, fakes.request(sequences=3), output, listener)
        assert [each.ends_itself for each in first.siblings] == expected


def test_adapters_are_names_that_a_backend_serves(tmp_path: Path) -> None:
    """With fewer places than adapters, requests for those that are not there wait longer."""
    named = "".join(
        f'{{"arrived_s": {n / 20}, "prompt_tokens": 64, "output_tokens": 64, "model": "tune-{n % 4}"}}\n'
        for n in range(120)
    )
    trace = tmp_path / "trace.jsonl"
    trace.write_text(named)
    waits = []
    for places in (0, 4, 1):
        made = pool(tmp_path, f", adapters: [tune-0, tune-1, tune-2, tune-3], adapters_max: {places}")
        table = Case(Source((str(trace),)), made, "round_robin").play().table
        assert table.served().all()
        waits.append(float(table.ttft_s().mean()))
    assert waits[0] == waits[1] < waits[2]
