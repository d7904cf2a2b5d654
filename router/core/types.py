"""The frozen facts of the system: requests, backends, and what engines report of themselves.

Everything here is parsed at the boundary and never again: seconds, tokens and bytes, no text. Nothing here decides.

What every request makes one of has a constructor written by hand: a dataclass's own stays interpreted where the module
is compiled, and takes ten times as long. Its fields are Final, which a compiled class holds at run time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf, isnan, nan
from typing import Any, Final, Protocol

from router.core.physics import StepCoefficients
from router.core.signals import in_order, names
from router.core.slo_metrics import BASE, DERIVED, SLO_METRICS

RequestId = str
_NONE_DERIVED: Final[tuple[float, ...]] = (inf,) * len(DERIVED)

# Of English text, as OpenAI's "What are tokens and how to count them" has it. The core learns by how much it is off for
# each model and tokenizer.
CHARS_PER_TOKEN: Final = 4.0


class Rng(Protocol):
    """A source of chance, handed in by the shell (``random.Random`` fits), so that a seed replays every choice."""

    def random(self) -> float:
        """The next number, uniform in [0, 1)."""
        ...


class Fact:
    """What a frozen dataclass of a compiled module inherits so that it can be pickled: it is made anew of its fields,
    for nothing can set them afterwards.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Slo(Fact):
    """The bounds of one request; ``inf`` means no bound.

    ``ttft_s``: arrival to first token; ``tpot_s``: mean time per output token after the first; ``e2e_s``: arrival to
    last token; ``quantile``: the share of such requests that must meet it, so the quantile a forecast is read at;
    ``refuse_infeasible``: a request with a bound that no backend of the pool could meet even when idle is refused at
    once with ``Reason.INFEASIBLE``, instead of being served as best effort; ``derived_s``: the bounds on the metrics of
    ``DERIVED``, in their order (empty: none). Policies see none of those: the dispatcher hands them ``in_base``.
    """

    ttft_s: float = inf
    tpot_s: float = inf
    e2e_s: float = inf
    quantile: float = 0.9
    refuse_infeasible: bool = False
    derived_s: tuple[float, ...] = ()

    def __hash__(self) -> int:
        """As a dataclass's own, which is never compiled: what counts by SLO looks one up for each request."""
        return hash((self.ttft_s, self.tpot_s, self.e2e_s, self.quantile, self.refuse_infeasible, self.derived_s))

    def met(self, ttft_s: float, tpot_s: float, e2e_s: float, prompt_tokens: float, output_tokens: float) -> bool:
        """Whether what happened is within every bound (nan, a time that never came, is within none that is finite).

        *output_tokens* is nan where it is only estimated: then a derived metric that needs it is not judged, and
        *tpot_s* is the least that it can have been.
        """
        return (
            (ttft_s <= self.ttft_s or self.ttft_s == inf)
            and (tpot_s <= self.tpot_s or self.tpot_s == inf)
            and (e2e_s <= self.e2e_s or self.e2e_s == inf)
            and (
                not self.derived_s
                or self._derived_met(ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens, isnan(output_tokens))
            )
        )

    def met_whole(self, e2e_s: float, prompt_tokens: float, output_tokens: float) -> bool:
        """The same of a reply that came whole: a metric that does not exist for it is not judged."""
        return e2e_s <= self.e2e_s and (
            not self.derived_s or self._derived_met(nan, nan, e2e_s, prompt_tokens, output_tokens, True)
        )

    def _derived_met(
        self, ttft_s: float, tpot_s: float, e2e_s: float, prompt_tokens: float, output_tokens: float, partly: bool
    ) -> bool:
        """*partly*: a metric that does not exist (nan) is not judged."""
        for metric, bound_s in zip(DERIVED, self.derived_s, strict=True):
            if bound_s < inf:
                value_s = metric.observed(ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens)
                if not (value_s <= bound_s or (partly and isnan(value_s))):
                    return False
        return True

    def bounds_s(self) -> tuple[float, ...]:
        """The bound on each of ``SLO_METRICS`` (inf: none)."""
        return (self.ttft_s, self.tpot_s, self.e2e_s, *(self.derived_s or _NONE_DERIVED))

    @property
    def bounded(self) -> bool:
        """Whether anything is bounded."""
        return not (self.ttft_s == inf and self.tpot_s == inf and self.e2e_s == inf and not self.derived_s)

    def in_base(self, prompt_tokens: float, output_tokens: float) -> "Slo":
        """The SLO as bounds on TTFT, TPOT and E2E alone: those given, and those that bounds on derived metrics imply
        for a request of this size.
        """
        if not self.derived_s:
            return self
        ttft_s, tpot_s, e2e_s = self.ttft_s, self.tpot_s, self.e2e_s
        for metric, bound_s in zip(DERIVED, self.derived_s, strict=True):
            if bound_s < inf:
                first_s, token_s, end_s = metric.implied(bound_s, prompt_tokens, output_tokens)
                ttft_s, tpot_s, e2e_s = min(ttft_s, first_s), min(tpot_s, token_s), min(e2e_s, end_s)
        return Slo(ttft_s, tpot_s, e2e_s, self.quantile, self.refuse_infeasible)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: bounds by name in seconds, those that are not set left out. ``slo_from`` reads it."""
        bounds = {
            metric.seconds: bound_s
            for metric, bound_s in zip(SLO_METRICS, self.bounds_s(), strict=True)
            if bound_s < inf
        }
        return {**bounds, "quantile": self.quantile, "refuse_infeasible": self.refuse_infeasible}


def slo_of(bounds_s: Sequence[float], quantile: float = 0.9, refuse_infeasible: bool = False) -> Slo:
    """The SLO with these bounds on ``SLO_METRICS``, in their order (inf: none)."""
    ttft_s, tpot_s, e2e_s = bounds_s[:BASE]
    derived_s = tuple(bounds_s[BASE:])
    return Slo(ttft_s, tpot_s, e2e_s, quantile, refuse_infeasible, () if derived_s == _NONE_DERIVED else derived_s)


def slo_from(plain: Mapping[str, Any]) -> Slo:
    """The SLO that ``Slo.plain`` wrote, by this version or by one that had fewer metrics."""
    bounds_s = [plain.get(metric.seconds, inf) for metric in SLO_METRICS]
    return slo_of(bounds_s, plain.get("quantile", 0.9), plain.get("refuse_infeasible", False))


NO_SLO = Slo()


@dataclass(init=False, slots=True, unsafe_hash=True)
class Request(Fact):
    """One request as the core sees it.

    ``prompt_tokens`` is exact in a trace and estimated from bytes at the gateway, ``prompt_sigma`` the standard
    deviation of the log of that error before anything is learnt (0: exact); ``output_tokens_max`` is the client's cap
    (0: none given); ``slo_class`` names where the SLO came from and keys the output-length statistics; ``priority`` is
    smaller for more urgent (vLLM's convention); ``prefix`` are hashes of the prompt's successive blocks, each covering
    everything before it, for prefix-cache affinity; ``streamed``: the client sees the first token when it comes (else
    the reply arrives whole, so only its end can be timed or judged); ``sequences`` that the engine generates (``n``
    choices for each prompt), of ``prompts`` prompts that ``prompt_tokens`` are of together, the longest of
    ``prompt_tokens_longest`` (0: there is but one); ``endpoint``: the pattern of its path, which not
    every engine's server has; ``among``: names of the only backends that it may be sent to (empty: any);
    ``requested_model``: the client's name, where a split selected ``model`` (empty: they are the same); ``fallback``:
    ``allow`` or ``deny``, whether another model may serve it (empty: the request does not state it).
    """

    id: Final[RequestId]
    model: Final[str]
    arrived_s: Final[float]
    prompt_tokens: Final[int]
    output_tokens_max: Final[int]
    slo: Final[Slo]
    slo_class: Final[str]
    priority: Final[int]
    tenant: Final[str]
    session: Final[str]
    prefix: Final[tuple[int, ...]]
    prefix_block_tokens: Final[int]
    streamed: Final[bool]
    prompt_sigma: Final[float]
    sequences: Final[int]
    prompts: Final[int]
    prompt_tokens_longest: Final[int]
    endpoint: Final[str]
    among: Final[tuple[str, ...]]
    requested_model: Final[str]
    fallback: Final[str]

    def __init__(
        self,
        id: RequestId,  # noqa: A002 - the field's word
        model: str,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens_max: int = 0,
        slo: Slo = NO_SLO,
        slo_class: str = "default",
        priority: int = 0,
        tenant: str = "",
        session: str = "",
        prefix: tuple[int, ...] = (),
        prefix_block_tokens: int = 0,
        streamed: bool = True,
        prompt_sigma: float = 0.0,
        sequences: int = 1,
        prompts: int = 1,
        prompt_tokens_longest: int = 0,
        endpoint: str = "",
        among: tuple[str, ...] = (),
        requested_model: str = "",
        fallback: str = "",
    ) -> None:
        self.id = id
        self.model = model
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens_max = output_tokens_max
        self.slo = slo
        self.slo_class = slo_class
        self.priority = priority
        self.tenant = tenant
        self.session = session
        self.prefix = prefix
        self.prefix_block_tokens = prefix_block_tokens
        self.streamed = streamed
        self.prompt_sigma = prompt_sigma
        self.sequences = sequences
        self.prompts = prompts
        self.prompt_tokens_longest = prompt_tokens_longest
        self.endpoint = endpoint
        self.among = among
        self.requested_model = requested_model
        self.fallback = fallback

    @property
    def first_token_due_s(self) -> float:
        """The latest moment of the first token that still meets the SLO (inf: no bound)."""
        return self.arrived_s + min(self.slo.ttft_s, self.slo.e2e_s)


@dataclass(init=False, slots=True, unsafe_hash=True)
class Usage(Fact):
    """Token counts of a reply, or of what came of it; ``prompt_tokens`` and ``cached_tokens`` are 0 when not reported.

    ``cached_stated``: the engine reported how many were cached, if only that none were; ``estimated``: it did not
    report ``output_tokens``, which are estimated from what it sent: they are shown as such, no TPOT is made of them,
    and nothing of the time or the length of replies is learnt from them. ``output_tokens_least``: of an estimate, how
    many are certain, since so many events had one (0: not counted).
    """

    output_tokens: Final[int]
    prompt_tokens: Final[int]
    cached_tokens: Final[int]
    cached_stated: Final[bool]
    estimated: Final[bool]
    output_tokens_least: Final[int]

    def __init__(
        self,
        output_tokens: int,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        cached_stated: bool = False,
        estimated: bool = False,
        output_tokens_least: int = 0,
    ) -> None:
        self.output_tokens = output_tokens
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.cached_stated = cached_stated
        self.estimated = estimated
        self.output_tokens_least = output_tokens_least


@dataclass(frozen=True, slots=True)
class Backend(Fact):
    """One routable engine replica: what is known of it before it has served anything.

    ``models``: the names it answers to; ``prior``: the physics of its card, model and parallelism;
    ``seqs_max``: sequences it runs at once (vLLM ``max_num_seqs``); ``kv_tokens_max``: tokens its KV cache holds;
    ``chunk_tokens``: tokens of one step (vLLM ``max_num_batched_tokens``); ``price_per_hour``: of all its cards, USD;
    ``network_s``: one way out and back between router and engine; ``weight``: for weighted baselines;
    ``context_tokens_max``: the longest prompt with its reply that it takes (vLLM ``max_model_len``; 0: any);
    ``adapters``: those of ``models`` that are adapters, each of which takes ``adapter_load_s`` to load.
    """

    name: str
    models: tuple[str, ...]
    prior: StepCoefficients
    seqs_max: int = 256
    kv_tokens_max: int = 200_000
    chunk_tokens: int = 2_048
    price_per_hour: float = 0.0
    network_s: float = 0.0
    weight: float = 1.0
    variant: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    context_tokens_max: int = 0
    adapters: tuple[str, ...] = ()
    adapter_load_s: float = 0.0


@dataclass(init=False, slots=True, unsafe_hash=True)
class EngineReport(Fact):
    """What an engine reports of its own queue; nan where it reports nothing. ``asked_s``: when the scrape began, on the
    router's clock.

    ``running`` and ``waiting`` count sequences; ``kv_tokens_max``: its KV capacity in tokens; ``signals``: in the
    order of ``router.core.signals``; ``asleep``: it takes requests in but runs none until somebody wakes it.
    """

    asked_s: Final[float]
    running: Final[float]
    waiting: Final[float]
    kv_tokens_max: Final[float]
    signals: Final[tuple[float, ...]]
    asleep: Final[bool]

    def __init__(
        self,
        asked_s: float,
        running: float = nan,
        waiting: float = nan,
        kv_tokens_max: float = nan,
        signals: tuple[float, ...] = (),
        asleep: bool = False,
    ) -> None:
        """``signals``: all of them; none given: the engine reports none."""
        self.asked_s = asked_s
        self.running = running
        self.waiting = waiting
        self.kv_tokens_max = kv_tokens_max
        self.signals = signals or in_order({})
        self.asleep = asleep

    @staticmethod
    def by_name(
        asked_s: float,
        # Not `float` alone: mypyc (2.4) cannot write down the signature of defaults of that type beside `**`.
        running: float | int = nan,
        waiting: float | int = nan,
        kv_tokens_max: float | int = nan,
        asleep: float | int = 0,
        **signals: float,
    ) -> "EngineReport":
        """A report with these signals; ``asleep``: 1 where it is. Raises TypeError for one that is not registered."""
        return EngineReport(asked_s, running, waiting, kv_tokens_max, in_order(signals), asleep == 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _report_of, (self.asked_s, self.numbers())

    @property
    def kv_usage(self) -> float:
        """The signal of that name."""
        return self.signal("kv_usage")

    @property
    def prefix_hit_rate(self) -> float:
        """The signal of that name."""
        return self.signal("prefix_hit_rate")

    def signal(self, name: str) -> float:
        """The signal of that name."""
        return self.signals[names().index(name)]

    def numbers(self) -> dict[str, float]:
        """All that is reported, by name; ``asleep`` only where it is."""
        signals = zip(names(), self.signals, strict=True)
        found = {"running": self.running, "waiting": self.waiting, **dict(signals), "kv_tokens_max": self.kv_tokens_max}
        return found | {"asleep": 1.0} if self.asleep else found


def _report_of(asked_s: float, numbers: Mapping[str, float]) -> EngineReport:
    """The report with these ``numbers``."""
    return EngineReport.by_name(asked_s, **numbers)


@dataclass(frozen=True, slots=True)
class Load(Fact):
    """Work in flight on one backend: sequences without a first token and those with one, the tokens they hold, and the
    tightest TPOT SLO of any of them (0: none).
    """

    prefilling: float = 0.0
    prefill_tokens: float = 0.0
    decoding: float = 0.0
    context_tokens: float = 0.0
    tpot_bound_s: float = 0.0
    e2e_tpot_bound_s: float = 0.0
