"""Situations that a policy may have to decide in, as plain facts: a pool, what runs on it, one request.

A world is a value; ``scene`` makes the arguments of a decision from it, anew each time, so that a policy that changed
what it was shown is caught by comparison. ``worlds`` draws them from a handed-in source of chance: the usual, the
empty, the overloaded and the absurd. What may occur in production must occur here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from router.core import NO_SLO, Backend, Fleet, Forecast, Request, Rng, Slo
from router.core.belief import Belief
from router.core.ledger import Ledger
from router.core.step import StepCoefficients
from router.core.types import Load

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One situation: ``loads`` and ``tpot_bounds_s`` (inf: none) are of the backend at the same place; ``turns`` are
    the indices of the backends sent to before, oldest first; ``down`` those that are not candidates.
    """

    request: Request
    backends: tuple[Backend, ...]
    loads: tuple[Load, ...]
    tpot_bounds_s: tuple[float, ...]
    turns: tuple[int, ...] = ()
    down: frozenset[int] = frozenset()
    now_s: float = 0.0
    held_ranks: tuple[tuple[float, ...], ...] = ()

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight anywhere."""
        return not any((self.turns, self.held_ranks, *(load != Load() for load in self.loads)))


def scene(world: World) -> tuple[Fleet, Forecast]:
    """What a policy is shown of a world. The candidates are never none."""
    ledger, belief = Ledger(), Belief()
    for backend in world.backends:
        belief.joined(ledger.join(backend, world.now_s), backend)
    loads = {b.name: load for b, load in zip(world.backends, world.loads, strict=True)}
    ledger.peers.on_peer_load("peer", loads, world.now_s)
    for index in world.turns:
        bound_s = world.tpot_bounds_s[index]
        ledger.load.prefilled(ledger.load.reserve(index, 100.0, 200.0, bound_s, world.now_s), world.now_s)
        ledger.remember_prefix(index, world.request)
    for index in world.down:
        ledger.mark_state(index, up=False)
    held = world.held_ranks
    fleet = Fleet(ledger, ledger.roster.pool(world.request.model), world.now_s, len(held), min(held, default=()))
    return fleet, Forecast(world.request, fleet, belief)


def worlds(rng: Rng, count: int) -> Iterator[World]:
    """``count`` situations of all kinds."""
    for number in range(count):
        yield _world(rng, number)


def idle_worlds(rng: Rng, count: int) -> Iterator[World]:
    """Pools that have nothing to do, and a request that any backend can serve: without SLO, or with one of an hour."""
    for number in range(count):
        pool = tuple(_backend(rng, index, plain=True) for index in range(1 + _below(rng, 6)))
        slo = NO_SLO if number % 2 else Slo(ttft_s=3600.0, tpot_s=60.0, e2e_s=36_000.0)
        request = _request(rng, number, slo, arrived_s=0.0, prompt_tokens=1 + _below(rng, 2_000))
        yield World(request, pool, (Load(),) * len(pool), (inf,) * len(pool))


def _world(rng: Rng, number: int) -> World:
    size = _one_of(rng, (1, 2, 3, 8, 20))
    pool = tuple(_backend(rng, index, plain=number % 3 != 0) for index in range(size))
    now_s = _one_of(rng, (0.0, 12.5, 1.7e9))
    slo = Slo(_one_of(rng, _TTFTS_S), _one_of(rng, _TPOTS_S), _one_of(rng, _E2ES_S), _one_of(rng, (0.5, 0.9, 0.99)))
    waited_s = _one_of(rng, (0.0, 0.0, 0.2, 5.0, 1e4))
    prompt_tokens = _one_of(rng, (0, 1, 200, 2_000, 30_000, 1_000_000))
    return World(
        request=_request(rng, number, slo, now_s - waited_s, prompt_tokens),
        backends=pool,
        loads=tuple(_load(rng) for _ in pool),
        tpot_bounds_s=tuple(_one_of(rng, _TPOTS_S) for _ in pool),
        turns=tuple(_below(rng, size) for _ in range(_below(rng, 12))),
        down=frozenset(range(size - 1)[:: 1 + _below(rng, 5)]) if _below(rng, 2) else frozenset(),
        now_s=now_s,
        held_ranks=((),) * _one_of(rng, (0, 0, 1, 500)),
    )


_TTFTS_S = (inf, inf, 0.0, 1e-6, 0.2, 1.0, 30.0)
_TPOTS_S = (inf, inf, 1e-6, 0.01, 0.03, 0.1, 10.0)
_E2ES_S = (inf, inf, 0.0, 2.0, 60.0)


def _request(rng: Rng, number: int, slo: Slo, arrived_s: float, prompt_tokens: int) -> Request:
    return Request(
        id=f"r{number}",
        model="m",
        arrived_s=arrived_s,
        prompt_tokens=prompt_tokens,
        output_tokens_max=_one_of(rng, (0, 0, 1, 64, 100_000)),
        slo=slo,
        priority=_one_of(rng, (0, 0, -1, 3, 1_000_000)),
        tenant=_one_of(rng, ("", "a", "b", "tenant \u00e9")),
        session=_one_of(rng, ("", "", "s1", "s2")),
        prefix=_one_of(rng, ((), (1,), (1, 2, 3), tuple(range(64)))),
        prefix_block_tokens=_one_of(rng, (0, 16, 512)),
    )


def _backend(rng: Rng, index: int, *, plain: bool) -> Backend:
    slower = 0.5 + 3.0 * rng.random() if plain else 10.0 ** (6.0 * rng.random() - 3.0)
    prior = StepCoefficients(0.01 * slower, 1e-4 * slower, 1e-7 * slower, 1e-4 * slower, 1e-9 * slower, 0.005)
    return Backend(
        name=f"backend-{index}",
        models=("m",),
        prior=prior,
        seqs_max=256 if plain else _one_of(rng, (1, 2, 100_000)),
        kv_tokens_max=200_000 if plain else _one_of(rng, (16, 1_000, 10_000_000)),
        price_per_hour=_one_of(rng, (0.0, 2.0, 98.0)),
        network_s=_one_of(rng, (0.0, 0.001, 0.2)),
        weight=1.0 if plain else _one_of(rng, (0.0, 0.5, 100.0)),
        variant=f"variant-{index % 4}",
    )


def _load(rng: Rng) -> Load:
    scale = _one_of(rng, (0.0, 0.0, 1.0, 30.0, 1e5))
    prefilling, decoding = scale * rng.random() // 4, scale * rng.random() // 1
    return Load(prefilling, 500.0 * prefilling, decoding, 700.0 * decoding)


def _below(rng: Rng, count: int) -> int:
    return int(rng.random() * count)


def _one_of(rng: Rng, choices: Sequence[T]) -> T:
    return choices[_below(rng, len(choices))]
