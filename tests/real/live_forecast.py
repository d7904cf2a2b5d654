"""How right the forecast is in front of real engines: `python -m tests.real.live_forecast --out FOLDER`.

Two vLLM servers of unequal size behind a gateway that knows nothing of this machine but what `deploy/local/router.yaml`
guesses. A closed loop steps from 1 to 16 requests at once; prompts and replies vary, and half of the replies have a
length that was asked for. The first requests (``--warm``) are not judged. Predictions are the gateway's own, from its
record; what came is timed here, at the client's socket. Written: the table, the record, and `forecast.html`, a plot of
forecast against actual. `--judge FOLDER` reads them again without engines, with the forecast of the code as it is now.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from deploy.local import catalog, processes
from tests.predictions import Predicted, predicted, read
from tests.real.forecast_plot import page
from tests.real.world import MODEL, backend, serving
from tests.streams import Ask, Seen, Talk, closed_loop

ENGINES = ("vllm-s", "vllm-l")
STEPS = (1, 2, 4, 8, 12, 16)
CLASSES = ("natural", "fixed")  # replies that end when the model says so, and of a length that was asked for
METRICS = ("TTFT", "TPOT", "E2E")
QUANTILES = (0.9, 0.99)
Pairs = Sequence[tuple[Seen, Predicted]]
Columns = NDArray[np.float64]


def asks(talk: Talk, count: int, first: int, model: str, reply: float) -> list[Ask]:
    """Requests of both kinds in turn; ``reply``: the longest of a larger model would take minutes, so a share of it."""
    made = []
    for n in range(first, first + count):
        kind = CLASSES[n % 2]
        tokens = max(8, int(talk.reply_tokens() * reply)) if kind == "fixed" else int(400 * reply)
        made.append(Ask(f"{model}-{n}", talk.prompt(), tokens, kind == "fixed", model=model, slo_class=kind))
    return made


def backends() -> list[dict[str, Any]]:
    """Both engines as users are shown them; each has a model name of its own beside the common one."""
    return [backend(name, models={MODEL: MODEL, name: MODEL}) for name in ENGINES]


PARTS = (("vllm-s", 0.4, 1.0), ("vllm-l", 0.12, 0.25), (MODEL, 0.48, 1.0))  # asked for, share of all, of reply length


async def drive(port: int, talk: Talk, count: int, number: int) -> list[Seen]:
    """So many requests: each engine alone, then whichever the router likes, each in steps of concurrency."""
    seen = []
    for model, share, reply in PARTS:
        counts = [len(each) for each in np.array_split(range(round(count * share)), len(STEPS))]
        steps = []
        for at_once, each in zip(STEPS, counts, strict=True):
            steps.append((at_once, asks(talk, each, number, model, reply)))
            number += each
        seen += await closed_loop(port, steps)
    return seen


async def run(out: Path, seed: int, warm: int, judged: int) -> None:
    """Start what is needed, ask, and write what was seen beside the gateway's record."""
    record = out / "record.jsonl"
    classes: dict[str, Any] = {name: {} for name in CLASSES}
    sections = {"slo_classes": classes, "default_slo_class": "natural", "record": {"file": str(record)}}
    async with serving(out, *backends(), **sections) as gateway:
        talk = Talk(seed)
        await drive(gateway.port, talk, warm, 0)
        seen = await drive(gateway.port, talk, judged, 100_000)
    rows = [{**asdict(each), "ask": {**asdict(each.ask), "prompt": ""}} for each in seen]
    (out / "seen.json").write_bytes(orjson.dumps(rows))


def judged(out: Path) -> list[tuple[Seen, Predicted]]:
    """What the client saw beside what was predicted, of the requests that came to their end."""
    rows = orjson.loads((out / "seen.json").read_bytes())
    seen = [Seen(**{**row, "ask": Ask(**row["ask"])}) for row in rows]
    said = predicted(read(out / "record.jsonl"), QUANTILES)
    refused = [each for each in seen if not each.tokens]
    print(f"{len(seen)} requests judged, {len(refused)} of them refused or cut")
    return [(each, said[each.ask.session]) for each in seen if each.tokens]


def columns(pairs: Pairs) -> tuple[Columns, Columns]:
    """Predicted and actual seconds, a row a metric; E2E of a reply of unknown length is at that length, too, in the
    last row: what the forecast would have been, had it known.
    """
    said = np.array([[*p.means_s, p.means_s[0] + (s.tokens - 1) * p.means_s[1]] for s, p in pairs]).T
    came = np.array([[s.ttft_s, s.tpot_s, s.e2e_s, s.e2e_s] for s, _ in pairs]).T
    return said, came


def hindsight(pairs: Pairs) -> dict[str, float]:
    """By session, the relative error of TTFT that is left to a line over prompt tokens drawn through what came in its
    own step, with least absolute error: what a forecast of prompts alone could not have bettered. On a machine that
    does other things too most of it is their doing.
    """
    steps: dict[tuple[str, int], list[Seen]] = {}
    for seen, _ in pairs:
        steps.setdefault((seen.ask.model, seen.at_once), []).append(seen)
    left = {}
    for each in steps.values():
        came = np.array([seen.ttft_s for seen in each])
        rows = np.array([(1.0, seen.prompt_tokens) for seen in each]) / came[:, None]
        line, weight = np.zeros(2), np.ones(len(each))
        for _ in range(50):  # iteratively reweighted least squares
            line = np.linalg.lstsq(rows * weight[:, None], weight, rcond=None)[0]
            weight = 1.0 / np.sqrt(np.abs(rows @ line - 1.0) + 1e-3)
        left |= {seen.ask.session: float(off) for seen, off in zip(each, np.abs(rows @ line - 1.0), strict=True)}
    return left


def kept(pairs: Pairs, quantile: float) -> list[float]:
    """The share of promises at *quantile* that were kept, by metric."""
    came = columns(pairs)[1][:3]
    said = np.array([p.quantiles_s[quantile] for _, p in pairs]).T
    there = np.isfinite(came)
    return [float((came[m] <= said[m])[there[m]].mean()) if there[m].any() else np.nan for m in range(3)]


def row(name: str, pairs: Pairs, left: dict[str, float]) -> str:
    """One line of the table."""
    said, came = columns(pairs)
    off = np.nanmedian(np.abs(said - came) / came, axis=1)
    lean = np.nanmedian(np.log(said / came), axis=1)
    bounds = [f"{share:6.1%}" for quantile in QUANTILES for share in kept(pairs, quantile)]
    errors = [f"{each:6.1%}" for each in (np.median([left[s.ask.session] for s, _ in pairs]), *off)]
    leans = [f"{each:+5.2f}" for each in lean]
    return f"{name:24} {len(pairs):5d}  {' '.join(errors)}  {' '.join(leans)}  {' '.join(bounds)}"


HEADER = (
    f"{'':24} {'n':>5}  {'median error of':^34}  {'median log, said/came':^23}  "
    f"{'kept at 0.9':^20} {'kept at 0.99':^20}\n"
    f"{'':31}  {'TTFT*':>6} {'TTFT':>6} {'TPOT':>6} {'E2E':>6} {'E2E*':>6}  "
    f"{'TTFT':>5} {'TPOT':>5} {'E2E':>5} {'E2E*':>5}  " + " ".join(f"{name:>6}" for name in METRICS * 2)
)


def groups(pairs: Pairs) -> Iterable[tuple[str, Pairs]]:
    """All, then by kind, by backend, by what was asked for, by how many at once."""
    yield "all", pairs
    for kind in CLASSES:
        yield kind, [(s, p) for s, p in pairs if s.ask.slo_class == kind]
    for name in ENGINES:
        yield f"on {name}", [(s, p) for s, p in pairs if p.backend == name]
    for name in (*ENGINES, MODEL):
        for at_once in STEPS:
            yield (
                f"asked {name}, {at_once} at once",
                [(s, p) for s, p in pairs if s.ask.model == name and s.at_once == at_once],
            )


def report(out: Path) -> None:
    """The table, and the plot."""
    pairs = judged(out)
    left = hindsight(pairs)
    lines = [HEADER, *(row(name, group, left) for name, group in groups(pairs) if group)]
    lines.append("TTFT*: of the best line over prompt tokens through each step's own outcomes, by hindsight")
    lines.append("E2E*: at the length that the reply turned out to have")
    table = "\n".join(lines)
    print(table)
    (out / "forecast.txt").write_text(table + "\n")
    (out / "forecast.html").write_text(page(pairs, table))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("live-forecast"), help="a folder for what is written")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and lengths")
    parser.add_argument("--warm", type=int, default=100, help="requests before those that are judged")
    parser.add_argument("--requests", type=int, default=1_000, help="requests that are judged")
    parser.add_argument("--judge", type=Path, help="no run: judge what an earlier one wrote there")
    given = parser.parse_args()
    if given.judge:
        report(given.judge)
        return 0
    processes.pin_client()
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        home = catalog.home_folder()
        with processes.there(ENGINES, home):
            asyncio.run(run(given.out, given.seed, given.warm, given.requests))
    except catalog.EngineError as error:
        print(error, file=sys.stderr)
        return 1
    report(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
