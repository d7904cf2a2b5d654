"""Workloads without a trace: ``gen:KIND:key=value,...``, from published statistics.

* ``poisson`` (rate, requests): memoryless.
* ``gamma`` (rate, requests, cv): bursts; gaps are gamma with coefficient of variation ``cv`` (BurstGPT, arXiv
  2401.17644: 1 to 4).
* ``diurnal`` (rate, requests, peak, period): a sine over ``period`` whose peak is ``peak`` times its mean (ServeGen,
  arXiv 2505.09999: about 3).
* ``closed`` (clients, think, requests): ``clients`` clients that each send again ``think`` (mean) after a reply.
* ``sessions`` (rate, requests, turns, think, system): conversations that begin at ``rate``, of ``turns`` turns (mean,
  geometric) with ``think`` between them; each prompt holds all earlier turns, and a system prompt of
  ``system`` tokens that all share.

Lengths of every kind: ``lengths=azure-conv`` (default), ``azure-code``, a trace file to draw pairs from, or
``prompt=`` and ``output=``: fixed, or with ``sigma=`` log-normal about these means. Every draw comes from the run's
seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import exp, log, pi, sin, sqrt
from pathlib import Path
from random import Random
from typing import Final

from router.spelling import suggestion
from simulator.traces import TraceEntry, read_trace
from simulator.workload.arrivals import Arrival, Shaper, Shaping, parse_seconds, shape

PREFIX: Final = "gen:"
UNIT_TOKENS: Final = 128
_TIMES: Final = ("think", "period")
Lengths = Callable[[], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parameters of a generator; each kind takes some of them."""

    kind: str
    rate: float = 10.0
    requests: int = 1_000
    cv: float = 2.0
    peak: float = 3.0
    period: float = 3_600.0
    clients: int = 16
    think: float = 0.0
    turns: float = 4.0
    system: int = 512
    lengths: str = "azure-conv"
    prompt: int = 0
    output: int = 0
    sigma: float = 0.0  # of the logarithm of both, about the means that prompt and output give

    def __post_init__(self) -> None:
        """ValueError names what cannot be."""
        for name in ("rate", "requests", "cv", "period", "clients"):
            if getattr(self, name) <= 0:
                raise ValueError(f"gen:{self.kind}: {name} must be above 0, got {getattr(self, name)}")
        if self.peak < 1 or self.peak > _PEAK_MAX or self.turns < 1 or self.think < 0:
            raise ValueError(f"gen:{self.kind}: peak must be 1 to {_PEAK_MAX}, turns 1 or more, think 0 or more")
        if bool(self.prompt) != bool(self.output) or self.prompt < 0 or self.output < 0:
            raise ValueError(f"gen:{self.kind}: prompt and output are given together, each above 0")
        if self.sigma < 0 or (self.sigma and not self.prompt):
            raise ValueError(f"gen:{self.kind}: sigma must be 0 or more, and goes with prompt and output")


_PEAK_MAX: Final = 10.0
_LENGTH_KEYS: Final = ("lengths", "prompt", "output", "sigma")
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "poisson": ("rate", "requests", *_LENGTH_KEYS),
    "gamma": ("rate", "requests", "cv", *_LENGTH_KEYS),
    "diurnal": ("rate", "requests", "peak", "period", *_LENGTH_KEYS),
    "closed": ("clients", "think", "requests", *_LENGTH_KEYS),
    "sessions": ("rate", "requests", "turns", "think", "system", *_LENGTH_KEYS),
}


def parse_recipe(text: str) -> Recipe:
    """The recipe of ``gen:poisson:rate=20,requests=1000``. Raises ValueError, which lists the kinds and keys."""
    kind, _, rest = text.removeprefix(PREFIX).partition(":")
    if kind not in _KEYS:
        raise ValueError(f"{text!r}: expected gen:KIND with a kind among {', '.join(_KEYS)}")
    values: dict[str, float | int | str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in _KEYS[kind]:
            raise ValueError(f"{text!r}: expected key=value, got {part!r}; {suggestion(key, _KEYS[kind])}")
        values[key] = _value(key, value, text)
    return Recipe(kind, **values)  # type: ignore[arg-type]


def _value(key: str, value: str, text: str) -> float | int | str:
    if key == "lengths":
        return value
    try:
        if key in _TIMES:
            return parse_seconds(value)
        return int(float(value)) if key in {"requests", "clients", "system", "prompt", "output"} else float(value)
    except ValueError as problem:
        raise ValueError(f"{text!r}: {key}: {problem}") from None


def generate(recipe: Recipe, how: Shaping, seed: int) -> "Sequence[Arrival] | ClosedLoop | Sessions":
    """The workload of a recipe, shaped. Raises ValueError or OSError if ``lengths`` cannot be read."""
    if recipe.kind in _ARRIVALS:
        return _independent(recipe, how, seed)
    draw = Random(f"{seed}/{recipe.kind}")
    lengths = _lengths(recipe, draw)
    if recipe.kind == "closed":
        return ClosedLoop(recipe, lengths, Shaper(how, seed), draw)
    return Sessions(replace(recipe, rate=recipe.rate * how.rate), lengths, Shaper(how, seed), draw)


@lru_cache(maxsize=1)
def _independent(recipe: Recipe, how: Shaping, seed: int) -> Sequence[Arrival]:
    """Arrivals that depend on nothing else; cached, for every policy of a comparison is given the same."""
    draw = Random(f"{seed}/{recipe.kind}")
    lengths, at_s = _lengths(recipe, draw), _ARRIVALS[recipe.kind](recipe, draw)
    return shape([TraceEntry(next(at_s), *lengths()) for _ in range(recipe.requests)], how, seed)


# ---- lengths -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A length by its median and the standard deviation of its logarithm."""

    median: float
    sigma: float

    def draw(self, chance: Random) -> int:
        """One length, 1 or more."""
        return max(1, round(self.median * exp(self.sigma * chance.gauss(0.0, 1.0))))


def by_mean_and_p99(mean: float, p99: float) -> LogNormal:
    """The log-normal of that mean and 99th percentile (z = 2.326)."""
    z = 2.326
    sigma = z - sqrt(z * z - 2 * log(p99 / mean))
    return LogNormal(mean * exp(-sigma * sigma / 2), sigma)


def by_mean_and_median(mean: float, median: float) -> LogNormal:
    """The log-normal of that mean and median."""
    return LogNormal(median, sqrt(2 * log(mean / median)))


PUBLISHED: Final = {
    # Azure LLM inference traces 2023 (AzurePublicDataset): prompt and output, mean with p99, or mean with median.
    "azure-conv": (by_mean_and_p99(1155, 4142), by_mean_and_p99(211, 601)),
    "azure-code": (by_mean_and_median(2048, 1500), by_mean_and_median(28, 13)),
}


def _lengths(recipe: Recipe, draw: Random) -> Lengths:
    if recipe.sigma:
        about = exp(-(recipe.sigma**2) / 2)
        spread = [LogNormal(mean * about, recipe.sigma) for mean in (recipe.prompt, recipe.output)]
        return lambda: (spread[0].draw(draw), spread[1].draw(draw))
    if recipe.prompt:
        return lambda: (recipe.prompt, recipe.output)
    if recipe.lengths in PUBLISHED:
        prompt, output = PUBLISHED[recipe.lengths]
        return lambda: (prompt.draw(draw), output.draw(draw))
    path = Path(recipe.lengths)
    if not path.exists():
        raise ValueError(f"lengths={recipe.lengths}: expected {', '.join(PUBLISHED)} or a trace file")
    pairs = [(entry.prompt_tokens, entry.output_tokens) for entry in read_trace(path).entries]
    return lambda: pairs[int(draw.random() * len(pairs))]


# ---- arrivals that depend on nothing ----------------------------------------------


def _poisson(recipe: Recipe, draw: Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s -= log(1.0 - draw.random()) / recipe.rate
        yield at_s


def _gamma(recipe: Recipe, draw: Random) -> Iterator[float]:
    at_s, shape_k = 0.0, 1 / recipe.cv**2
    while True:
        at_s += draw.gammavariate(shape_k, 1 / (recipe.rate * shape_k))
        yield at_s


def _diurnal(recipe: Recipe, draw: Random) -> Iterator[float]:
    """Thinning (Lewis, Shedler 1979) of a Poisson process at the peak's rate; beyond a peak of 2 nights are empty."""
    at_s, top = 0.0, recipe.rate * recipe.peak
    while True:
        at_s += draw.expovariate(top)
        wave = 1 + (recipe.peak - 1) * sin(2 * pi * at_s / recipe.period)
        if draw.random() * recipe.peak < max(0.0, wave):
            yield at_s


_ARRIVALS: Final = {"poisson": _poisson, "gamma": _gamma, "diurnal": _diurnal}


# ---- arrivals that follow from others -----------------------------------------------


class ClosedLoop:
    """A number of clients, each of which has one request in flight or pauses (think time)."""

    def __init__(self, recipe: Recipe, lengths: Lengths, shaper: Shaper, draw: Random) -> None:
        """No request has been sent."""
        self._recipe, self._lengths, self._shaper, self._draw = recipe, lengths, shaper, draw
        self._left = recipe.requests
        self.pending = 0

    def __len__(self) -> int:
        return self._recipe.requests

    def __iter__(self) -> Iterator[Arrival]:
        for _ in range(min(self._recipe.clients, self._left)):
            self._left -= 1
            yield self._arrival(0.0)

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """The next request of the same client."""
        if not self._left:
            return []
        self._left -= 1
        self.pending += 1
        think_s = self._draw.expovariate(1 / self._recipe.think) if self._recipe.think else 0.0
        return [self._arrival(ended_s + think_s)]

    def _arrival(self, at_s: float) -> Arrival:
        return self._shaper.arrival(TraceEntry(at_s, *self._lengths()), at_s)


@dataclass(slots=True)
class Conversation:
    """One conversation: its tokens so far, and the turns left."""

    number: int  # from 1
    turns: int
    tokens: int = 0

    @property
    def name(self) -> str:
        """The session id."""
        return f"s{self.number}"


@dataclass
class Sessions:
    """Conversations: every prompt holds all earlier turns and a new question; the system prompt is shared by all."""

    recipe: Recipe
    lengths: Lengths
    shaper: Shaper
    draw: Random
    pending: int = 0
    _started: int = 0
    _conversations: dict[str, Conversation] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.recipe.requests

    def __iter__(self) -> Iterator[Arrival]:
        at_s = 0.0
        while self._started < self.recipe.requests:
            at_s += self.draw.expovariate(self.recipe.rate)
            conversation = Conversation(len(self._conversations) + 1, self._turns(), self.recipe.system)
            self._conversations[conversation.name] = conversation
            yield self._next_turn(conversation, at_s)

    def _turns(self) -> int:
        turns, more = 1, 1 - 1 / self.recipe.turns
        while self.draw.random() < more:
            turns += 1
        return turns

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """The next turn of the same conversation, if there is one."""
        conversation = self._conversations.get(arrival.request.session)
        if conversation is None or not conversation.turns or self._started >= self.recipe.requests:
            return []
        self.pending += 1
        think_s = self.draw.expovariate(1 / self.recipe.think) if self.recipe.think else 0.0
        return [self._next_turn(conversation, ended_s + think_s)]

    def _next_turn(self, conversation: Conversation, at_s: float) -> Arrival:
        question, output = self.lengths()
        self._started += 1
        conversation.turns -= 1
        prompt = conversation.tokens + question
        conversation.tokens = prompt + output
        known = self._units(conversation)
        entry = TraceEntry(
            at_s,
            prompt,
            output,
            session=conversation.name,
            prefix=known[: prompt // UNIT_TOKENS],
            prefix_block_tokens=UNIT_TOKENS,
        )
        return self.shaper.arrival(entry, at_s, known)

    def _units(self, conversation: Conversation) -> tuple[int, ...]:
        """Hashes of the conversation up to the end of this turn; those of the system prompt are the same for all."""
        shared, whole = self.recipe.system // UNIT_TOKENS, conversation.tokens // UNIT_TOKENS
        return tuple(n if n < shared else (conversation.number << 32) + n for n in range(whole))
