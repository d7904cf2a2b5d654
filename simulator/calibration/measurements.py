"""Measured engines from a CSV: one row is one configuration and its measured times.

Uses the columns below only. Must not depend on how a step is predicted.

A user's own file needs only these columns (others may be absent or empty):

    source          who measured; errors are reported, and rows left out, by it
    engine          vllm, sglang, tensorrt-llm, ...    engine_version  "0.6.3", "2023", "" = current
    card, model     names or aliases of `router.core.cards` and `router.core.models`
    precision       fp16, bf16, fp8, int8, int4, ...   tp, pp, ep      default 1
    load_kind       static_batch (all at once, in step) or concurrency (closed loop)
    kv_precision    of the KV cache where it is not 16 bits
    batch_or_concurrency, isl, osl                     sequences, prompt and output tokens
    ttft_ms_mean or ttft_ms_p50                        mean first token, milliseconds
    itl_ms_mean or itl_ms_p50                          mean gap between tokens, milliseconds
    itl_kind        empty or any text is direct; "derived ..." is judged apart; "UPPER BOUND ..." or
                    "e2e/osl ..." means the figure hides the prefill and only ``e2e_ms`` (or the
                    figure times ``osl``) is used
    e2e_ms          last token of the batch, milliseconds
    spec_drafted, spec_acceptance                      speculative decoding: tokens proposed a step (default 0) and
                    the rate at which each is accepted
    note, scope     "DO NOT FIT", "LOW TRUST", "per-POOL" and data-parallel attention are left out

Left out besides: a closed loop of which more than half wait for a first token (its batch is not known), and what
rows say against one another (`consistency.py`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Final

from router.core.cards import Card, card
from router.core.errors import UnknownEngine
from router.core.models import Model, model
from router.core.physics import Shape, weight_bytes
from router.engines import find
from simulator.errors import Unreadable

Row = Mapping[str, str]


_SELDOM: Final = 0.1
"""Others that wait for a first token at any time, on average, where a load counts as low."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One configuration and what was seen: seconds, ``nan`` for what was not.

    ``tpot_s`` is the mean gap between tokens where it was measured itself (ITL is direct),
    ``derived_tpot_s`` where it was computed from other figures; ``e2e_s`` the whole of a request. ``lockstep``:
    a static batch whose prompts are prefilled together, else a closed loop of ``batch`` users. ``drafted``: tokens
    proposed a step by speculative decoding, each accepted at the rate ``acceptance``.
    """

    source: str
    shape: Shape
    batch: float
    prompt_tokens: float
    output_tokens: float
    lockstep: bool
    tpot_s: float
    ttft_s: float
    e2e_s: float
    derived_tpot_s: float = nan
    drafted: float = 0.0
    acceptance: float = 0.0

    @property
    def unqueued(self) -> bool:
        """Whether the first token waited for no other request, or seldom: a static batch, a single user, or a closed
        loop in which few of the others wait for a first token at any time.
        """
        cycle_s = self.ttft_s + self.output_tokens * self.tpot_s
        return self.lockstep or self.batch == 1 or (self.batch - 1) * self.ttft_s <= _SELDOM * cycle_s


@dataclass(frozen=True, slots=True)
class Observed:
    """A measurement, the number of its line, and the *wording* (version, precision) that its shape does not hold."""

    line: int
    wording: str
    seen: Measurement


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is left out, and why; ``unreadable``: its text is not valid, rather than left out by a rule."""

    line: int
    why: str
    unreadable: bool = False


_NOW: Final = (99, 0)
_YEARS: Final = {"2022": (0, 0), "2023": (0, 0), "2024": (0, 5), "2025": _NOW, "2026": _NOW}


def engine_key(name: str, version: str) -> str:
    """The efficiency table's key of an engine and its version; no version means today's."""
    plain = "triton" if "triton" in name.lower() else re.sub(r"[(?].*", "", name.lower()).strip()
    try:
        return find(plain).prior_of(_version(version))
    except UnknownEngine:
        return plain


def _version(text: str) -> tuple[int, int]:
    """(major, minor) of a version, a year as its era, anything else as today's."""
    for year, era in _YEARS.items():
        if text.startswith(year) or f"({year})" in text:
            return era
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else _NOW


_PRECISIONS: Final = {
    "q4_0": "q4", "q4_1": "q4", "q5_0": "q5", "q5_1": "q5", "q8_0": "q8", "f16": "fp16",
}  # fmt: skip
_SHORT: Final = 128.0  # tokens, where a source states no length: a short chat
_LAYER_SPLIT: Final = {
    "llamacpp",
    "llamacpp-2024",
    "transformers",
}  # several cards hold the layers in turn, one works at a time
_HIDES_PREFILL: Final = ("UPPER BOUND", "e2e/osl")
_UNTRUSTED: Final = ("DO NOT FIT", "LOW TRUST", "ASSUMED")


def parse(rows: Iterable[Row]) -> tuple[list[Observed], list[Skipped]]:
    """Measurements of *rows*; line numbers count the heading as 1."""
    usable: list[Observed] = []
    skipped: list[Skipped] = []
    for line, row in enumerate(rows, start=2):
        try:
            usable.append(Observed(line, f"{row.get('engine_version')} {row['precision']}", _measurement(row)))
        except (ValueError, KeyError) as unusable:
            skipped.append(Skipped(line, str(unusable), isinstance(unusable, Unreadable)))
    return usable, skipped


def _measurement(row: Row) -> Measurement:
    _refuse_untrusted(row)
    shape = _shape(row)
    cards = _tp(row) * int(_first(row, "pp", missing=1))
    if weight_bytes(shape.model, shape.precision) > shape.card.memory_bytes * cards:
        raise ValueError(f"{shape.model.name} at {shape.precision} does not fit {cards} x {shape.card.name}")
    lockstep = row.get("load_kind") == "static_batch"
    if not lockstep and row.get("load_kind") != "concurrency":
        raise ValueError(f"load_kind {row.get('load_kind')!r}: expected static_batch or concurrency")
    kind = row.get("itl_kind") or ""
    hides, derived = kind.startswith(_HIDES_PREFILL), kind.startswith("derived")
    batch, output, prompt = (
        _number(row, "batch_or_concurrency"),
        _number(row, "osl", _SHORT),
        _number(row, "isl", _SHORT),
    )
    middle_first = "mean derived" in kind  # its percentiles were measured, its mean is from throughput
    tpot_s = _first(row, *("itl_ms_mean", "itl_ms_p50")[:: -1 if middle_first else 1]) / 1e3
    seen = Measurement(
        source=row.get("source") or "unnamed",
        shape=shape,
        batch=batch,
        prompt_tokens=prompt,
        output_tokens=output,
        lockstep=lockstep,
        tpot_s=nan if hides or derived else tpot_s,
        ttft_s=_first(row, "ttft_ms_mean", "ttft_ms_p50") / 1e3,
        e2e_s=_e2e_s(row, tpot_s * output) if hides else nan,
        derived_tpot_s=tpot_s if derived else nan,
        drafted=_first(row, "spec_drafted", missing=0.0),
        acceptance=_first(row, "spec_acceptance", missing=0.0),
    )
    if seen.drafted < 0 or not 0 <= seen.acceptance <= 1:
        raise ValueError("expected spec_drafted of at least 0 and spec_acceptance from 0 to 1")
    if not any(isfinite(each) for each in (seen.tpot_s, seen.derived_tpot_s, seen.ttft_s, seen.e2e_s)):
        raise ValueError("nothing was measured: expected ttft, itl or e2e")
    if not (lockstep or batch == 1) and seen.ttft_s > seen.output_tokens * seen.tpot_s:
        raise ValueError("more than half of the users wait for a first token: the batch is not known")
    if shape.engine.startswith("llamacpp") and hides and row.get("source") in _CHUNKS_AS_BATCH:
        return _one_sequence(seen)
    return seen


_CHUNKS_AS_BATCH: Final = {"argonne_llm_inference_bench"}
"""Sources whose batch of llama.cpp is ``llama-bench -b``: how many tokens of the prompt are evaluated at once, of one
sequence. Seen by a whole time that is ``(output + prompt / b)`` times the same gap for every ``b``: 16.1, 9.00, 8.75
and 8.59 ms a token at 1, 16, 32 and 64 (Llama-2-7B on GH200)."""


def _one_sequence(seen: Measurement) -> Measurement:
    """The gap of the single sequence whose prompt was evaluated ``batch`` tokens at a time."""
    gap_s = seen.e2e_s / (seen.output_tokens + seen.prompt_tokens / seen.batch)
    return replace(seen, batch=1.0, prompt_tokens=seen.prompt_tokens / 2, e2e_s=nan, derived_tpot_s=gap_s)


def _refuse_untrusted(row: Row) -> None:
    remarks = f"{row.get('note', '')} {row.get('scope', '')}"
    for mark in (*_UNTRUSTED, "per-POOL"):
        if mark in remarks:
            raise ValueError(f"marked {mark}")
    shared = re.search(r"attention_dp=(\d+)", remarks)
    if shared and int(shared[1]) > 1:
        raise ValueError("data-parallel attention is not a TP shape")


def _e2e_s(row: Row, otherwise_s: float) -> float:
    stated = _first(row, "e2e_ms") / 1e3
    return stated if isfinite(stated) else otherwise_s


def _shape(row: Row) -> Shape:
    engine = engine_key(row["engine"], row.get("engine_version") or "")
    used = _card(row)
    stored = _precision(row["precision"], used)
    of = model(row["model"])
    tp = _tp(row)
    if tp > used.cards_per_node:
        raise ValueError(f"TP {tp} is more than a node's {used.cards_per_node} cards: not one all-reduce domain")
    return Shape(
        used,
        of,
        tp,
        1 if engine in _LAYER_SPLIT else int(_first(row, "pp", missing=1)),
        stored,
        row.get("kv_precision") or ("fp8" if _narrow_kv(row, engine, stored, of) else None),
        engine,
        min(tp, max(1, int(_first(row, "ep", missing=1)))),
    )


_EXPERTS_COUNTED_AGAIN: Final = {"inferencemax_via_aic"}
"""Sources that multiply TP by EP where both are over the same cards. Seen by engines of 64 cards in nodes of 8, whose
TPOT is that of TP 8, and by TP 4 with EP 2, whose TPOT is that of TP 2."""


def _tp(row: Row) -> int:
    """Cards of one all-reduce."""
    tp, ep = int(_first(row, "tp", missing=1)), int(_first(row, "ep", missing=1))
    each = re.search(r"moe_tp=(\d+)", row.get("note") or "")
    again = row.get("source") in _EXPERTS_COUNTED_AGAIN and each is not None and int(each[1]) == ep > 1
    return ep if again else tp


def _narrow_kv(row: Row, engine: str, stored: str, of: Model) -> bool:
    """Whether KV is FP8: quantised checkpoints of TensorRT's ModelOpt carry scales for it, others do not.

    TensorRT-LLM's own are such, and those that NVIDIA publishes, in any engine (vLLM pull request 29980).
    """
    made_by = engine.startswith("tensorrt-llm") or row["model"].startswith("nvidia/")
    return made_by and stored in {"fp8", "fp4"} and not of.block_fp8


def _card(row: Row) -> Card:
    """The card named. A power-capped one keeps its data sheet and gets a name and family of its own."""
    name = row["card"]
    capped = name.removesuffix("-powercapped")
    found = card(capped)
    return (
        found if capped == name else replace(found, name=f"{found.name}-powercapped", family=f"{found.family}-capped")
    )


def _precision(text: str, used: Card) -> str:
    """FP4 on a card that has no FP4 units is MXFP4 unpacked to 16 bits."""
    stored = _PRECISIONS.get(text.lower(), text.lower())
    return "mxfp4" if stored == "fp4" and "fp4" not in used.flops_per_s else stored


def _number(row: Row, column: str, missing: float = nan) -> float:
    value = _first(row, column, missing=missing)
    if not isfinite(value) or value <= 0:
        raise ValueError(f"{column} {row.get(column)!r}: expected a number above 0")
    return value


def _first(row: Row, *columns: str, missing: float = nan) -> float:
    for column in columns:
        if text := row.get(column):
            try:
                return float(text)
            except ValueError:
                raise Unreadable(f"{column} {text!r}: expected a number") from None
    return missing
