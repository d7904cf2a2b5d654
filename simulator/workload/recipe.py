"""What is typed of a generated workload, ``gen:KIND:key=value,...``: its kinds, their keys, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Final

from router.spelling import suggestion
from simulator.workload.arrivals import parse_seconds

PREFIX: Final = "gen:"
PEAK_MAX: Final = 10.0
_TIMES: Final = ("think", "period", "tool", "start", "span")
_TEXTS: Final = ("lengths", "rates", "workload")
_COUNTS: Final = ("requests", "clients", "system", "prompt", "output", "branches")


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
    steps: float = 6.0  # calls of a model before an agent answers its user, mean
    tool: float = 2.5  # seconds between two of them, mean
    fork: float = 0.1  # share of the steps after which an agent starts others and waits for them
    branches: int = 3  # so many
    rates: str = ""  # a file with a curve
    workload: str = ""  # one of several in it
    start: float = 0.0  # seconds into the curve
    span: float = 0.0  # of it, seconds; 0: all

    def __post_init__(self) -> None:
        """ValueError names what cannot be."""
        for name in ("rate", "requests", "cv", "period", "clients", "branches"):
            if name == "rate" and self.kind == "curve" and self.rate == 0:
                continue  # as the curve has it
            self._require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("think", "tool", "start", "span", "system"):
            self._require(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("turns", "steps"):
            self._require(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        self._require(1 <= self.peak <= PEAK_MAX, f"peak must be 1 to {PEAK_MAX:g}, got {self.peak}")
        self._require(0 <= self.fork <= 1, f"fork must be 0 to 1, got {self.fork}")
        self._require(
            bool(self.prompt) == bool(self.output) and self.prompt >= 0 and self.output >= 0,
            "prompt and output are given together, each above 0",
        )
        self._require(
            self.sigma == 0 or (self.sigma > 0 and self.prompt > 0),
            "sigma must be 0 or more, and goes with prompt and output",
        )
        self._require(self.kind != "curve" or bool(self.rates), "rates=FILE is missing: the curve of rates")

    @property
    def requests_each(self) -> float:
        """Requests that each of those that arrive at ``rate`` comes to, mean: of a conversation, of an agent's task."""
        if self.kind == "sessions":
            return self.turns
        if self.kind != "agents":
            return 1.0
        return self.turns * (self.steps + (self.steps - 1) * self.fork * self.branches * self.steps)

    @property
    def pauses_s(self) -> float:
        """Time between the requests of one of them in all, mean."""
        if self.kind == "sessions":
            return (self.turns - 1) * self.think
        if self.kind != "agents":
            return 0.0
        return (self.turns - 1) * self.think + self.turns * (self.steps - 1) * self.tool

    def _require(self, met: bool, expected: str) -> None:
        if not met:
            raise ValueError(f"{PREFIX}{self.kind}: {expected}")


_LENGTH_KEYS: Final = ("lengths", "prompt", "output", "sigma")
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "poisson": ("rate", "requests", *_LENGTH_KEYS),
    "gamma": ("rate", "requests", "cv", *_LENGTH_KEYS),
    "diurnal": ("rate", "requests", "peak", "period", *_LENGTH_KEYS),
    "curve": ("rates", "workload", "rate", "start", "span", *_LENGTH_KEYS),
    "closed": ("clients", "think", "requests", *_LENGTH_KEYS),
    "sessions": ("rate", "requests", "turns", "think", "system", *_LENGTH_KEYS),
    "agents": ("rate", "requests", "turns", "think", "steps", "tool", "fork", "branches", "system", *_LENGTH_KEYS),
}
_DEFAULTS: Final[Mapping[str, Mapping[str, float | int]]] = {
    # Of a coding agent: AIPerf 0.13, dataset/agentic_code_gen/configs/default.json, has 2.5 s between steps, 40 s of a
    # user and 32,000 tokens that all begin with. Its rate is of tasks, each of some dozen requests.
    "agents": {"rate": 0.2, "turns": 2.0, "think": 40.0, "system": 8_192},
    "curve": {"rate": 0.0},
}


def parse_recipe(text: str) -> Recipe:
    """The recipe of ``gen:poisson:rate=20,requests=1000``. Raises ValueError, which lists the kinds and keys."""
    kind, _, rest = text.removeprefix(PREFIX).partition(":")
    if kind not in KINDS:
        raise ValueError(f"{text!r}: expected gen:KIND with a kind among {', '.join(KINDS)}")
    given: dict[str, float | int | str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in KINDS[kind]:
            raise ValueError(f"{text!r}: expected key=value, got {part!r}; {suggestion(key, KINDS[kind])}")
        if key in given:
            raise ValueError(f"{text!r}: {key} is given twice")
        given[key] = _value(key, value, text)
    recipe = Recipe(kind, **{**_DEFAULTS.get(kind, {}), **given})  # type: ignore[arg-type]
    return _whole_days(recipe, set(given)) if kind == "diurnal" else recipe


def _value(key: str, value: str, text: str) -> float | int | str:
    if key in _TEXTS:
        return value
    try:
        number = parse_seconds(value) if key in _TIMES else float(value)
    except ValueError as problem:
        raise ValueError(f"{text!r}: {key}: {problem}") from None
    if not isfinite(number):
        raise ValueError(f"{text!r}: {key}: expected a finite number, got {value!r}")
    if key in _COUNTS and not number.is_integer():
        raise ValueError(f"{text!r}: {key}: expected a whole number, got {value!r}")
    return int(number) if key in _COUNTS else number


def _whole_days(recipe: Recipe, given: set[str]) -> Recipe:
    """A day that lasts: without ``requests`` as many as one period has, without ``period`` one as long as they last."""
    if "requests" not in given:
        return replace(recipe, requests=max(1, round(recipe.rate * recipe.period)))
    if "period" not in given:
        return replace(recipe, period=recipe.requests / recipe.rate)
    needed = ceil(recipe.rate * recipe.period - 1)
    if recipe.requests < needed:
        raise ValueError(
            f"gen:diurnal: {recipe.requests} requests at rate={recipe.rate:g} last "
            f"{recipe.requests / recipe.rate:g} s, less than a period of {recipe.period:g} s: "
            f"give requests={needed} or more, or leave one of the two out"
        )
    return recipe
