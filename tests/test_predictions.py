"""What is read of a record is what the gateway predicted when it was written."""

import json
import random
from pathlib import Path

import pytest

from router.core.decisions import Send
from router.core.record import Recording
from router.core.types import Usage
from tests.fakes import backend, core, request
from tests.predictions import predicted, read


def served(it: Recording, chance: random.Random, count: int) -> None:
    """Requests without an SLO, so that nobody is held, a few at once on two unequal backends."""
    for number in range(2):
        it.backend_joined(backend(f"b{number}", slower=1.0 + number), 0.0)
    now_s, running = 0.0, list[tuple[str, int]]()
    for number in range(count):
        now_s += chance.random() * 0.05
        made = request(f"r{number}", arrived_s=now_s, prompt_tokens=chance.randrange(1, 3000), session=f"s{number}")
        sends = [command for command in it.arrived(made, now_s) if isinstance(command, Send)]
        running += [(send.request_id, send.attempt) for send in sends]
        while len(running) > 6:
            done = running.pop(chance.randrange(len(running)))
            it.first_token(*done, now_s + 0.01)
            now_s += 0.02
            it.ended(*done, Usage(chance.randrange(2, 200), 900), now_s)


@pytest.mark.parametrize("seed", range(3))
def test_a_record_told_again_gives_the_predictions_that_were_made(tmp_path: Path, seed: int) -> None:
    """The means that the account of each request names, to the last digit; tails that lie above them."""
    lines = [{"record": 2, "seed": seed}]
    served(Recording(core(routing="slo_headroom", seed=seed), lines.append), random.Random(seed), 150)
    file = tmp_path / "record.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = {c["request_id"]: c for line in lines for c in line.get("answer", ()) if c["command"] == "RequestRecord"}
    found = predicted(read(file), (0.9,))
    assert found.keys() == {name.replace("r", "s") for name in told}
    for request_id, account in told.items():
        each = found[request_id.replace("r", "s")]
        means = tuple(account[f"predicted_{name}_s"] for name in ("ttft", "tpot", "e2e"))
        assert each.means_s == pytest.approx(means, rel=1e-12)
        assert each.backend == account["backend"]
        assert each.quantiles_s[0.9][0] == pytest.approx(account["predicted_ttft_tail_s"], rel=1e-12)
