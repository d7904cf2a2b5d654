"""Option values of the command line, parsed: policies, pools, rates, time windows. Every ValueError says what was
expected.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Final

import policies
from router import loading
from router.core import Admission, Routing
from simulator.bounds.clairvoyant import PORTFOLIO, Strategy
from simulator.pool import BUILT_IN, Pool
from simulator.pool_file import load_pool
from simulator.workload.arrivals import parse_seconds, parse_slo

CLAIRVOYANT: Final = "clairvoyant"
"""The name of the clairvoyant bound where a policy is expected."""
STRATEGY_PREFIX: Final = f"{CLAIRVOYANT}:strategy="


def strategies_of(text: str) -> tuple[Strategy, ...]:
    """The strategies of ``clairvoyant`` (all) or ``clairvoyant:strategy=NAME`` (one); none for a policy.

    Raises ValueError, which lists the strategies.
    """
    if text == CLAIRVOYANT:
        return PORTFOLIO
    if text.partition(":")[0] != CLAIRVOYANT:
        return ()
    named = tuple(strategy for strategy in PORTFOLIO if text == STRATEGY_PREFIX + strategy.name)
    if not named:
        names = ", ".join(strategy.name for strategy in PORTFOLIO)
        raise ValueError(f"policy {text!r}: expected {STRATEGY_PREFIX}NAME with a NAME among {names}")
    return named


def routing_of(text: str) -> Routing:
    """The routing policy of ``NAME:key=value,...`` or ``FILE.py:key=value,...``. Raises ValueError: the choices."""
    routing: Routing = _policy("routing", text)
    return routing


def admission_of(text: str) -> Admission:
    """The admission policy of such a text. Raises ValueError."""
    admission: Admission = _policy("admission", text)
    return admission


def _policy(kind: str, text: str) -> Any:
    name, _, rest = text.partition(":")
    parameters = dict(_parameter(part, text) for part in rest.split(",") if part)
    if name.endswith(".py"):
        return loading.load(kind, loading.read(Path(name)), parameters)
    return policies.find(kind, name, parameters)


def _parameter(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"policy {text!r}: expected key=value, got {part!r}")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def pool_of(path: Path | None, slos: Sequence[str]) -> Pool:
    """The pool of the file, or the built-in one; *slos* replace its SLO classes. Raises ConfigError, ValueError."""
    pool = BUILT_IN if path is None else load_pool(path)
    return replace(pool, classes=tuple(parse_slo(text) for text in slos)) if slos else pool


def pools_of(paths: Sequence[Path | None], slos: Sequence[str]) -> list[Pool]:
    """The pools of these files, each under a name of its own: the file's, or its path where several files have that.

    Raises ConfigError, and ValueError for a file that is given twice.
    """
    places = [path.resolve() if path is not None else None for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"--pool: {path} is given twice")
    pools = [pool_of(path, slos) for path in paths]
    names = [pool.name for pool in pools]
    return [
        pool if names.count(pool.name) == 1 else replace(pool, name=str(path))
        for path, pool in zip(paths, pools, strict=True)
    ]


def rate_of(text: str) -> float:
    """The factor of ``x2`` or ``2``. Raises ValueError."""
    try:
        rate = float(text.removeprefix("x"))
    except ValueError:
        rate = -1.0
    if not 0 < rate < inf:
        raise ValueError(f"--rate: expected a factor such as x2, got {text!r}")
    return rate


def window_of(text: str) -> tuple[float, float]:
    """Start and end of ``5m-10m``, ``5m-`` or ``-10m``, seconds. Raises ValueError."""
    if not text:
        return 0.0, inf
    start, dash, end = text.partition("-")
    if not dash:
        raise ValueError(f"--window: expected FROM-TO such as 5m-10m, got {text!r}")
    from_s = parse_seconds(start) if start else 0.0
    to_s = parse_seconds(end) if end else inf
    if to_s <= from_s:
        raise ValueError(f"--window: {text!r} ends before it begins")
    return from_s, to_s
