"""The endpoints of all sources as backends of one plan: each name and each address once, the config's own first.

Must not depend on how sources are read.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.config.settings import Discover
from router.gateway.config.found import EngineAccess, FoundBackend
from router.gateway.config.plan import Plan
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.facts import backend_of

_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Given:
    """What one source gives to a plan: its entry of the config, how its engines are reached, its endpoints."""

    entry: Discover
    access: EngineAccess
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one endpoint. ``skipped``: why it is no backend, empty if it is one; ``ignored``: labels that are
    no valid facts.
    """

    endpoint: Endpoint
    backend: FoundBackend | None
    skipped: str = ""
    ignored: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        given = self.endpoint
        return {
            "name": given.name,
            "url": given.url,
            "labels": dict(given.labels),
            "terminating": given.terminating,
            "skipped": self.skipped or None,
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcomes of every source, in the config's order."""

    outcomes: tuple[tuple[Outcome, ...], ...]

    @property
    def found(self) -> tuple[FoundBackend, ...]:
        """The backends."""
        return tuple(each.backend for outcomes in self.outcomes for each in outcomes if each.backend is not None)


class _Taken:
    """Names and addresses that there are already, and the addresses of what ends, by the source that states so."""

    def __init__(self, plan: Plan, sources: Sequence[Given]) -> None:
        self.names = {each.name: "the config" for each in plan.settings.backends}
        self.urls = {each.url: each.name for each in plan.settings.backends}
        self._ending = {
            each.url.rstrip("/"): source for source in sources for each in source.endpoints if each.terminating
        }

    def why_not(self, url: str, source: Given) -> str:
        """Why no backend of *source* may have that address; empty: it may. What one source states to end must not come
        back by another that has not heard of it; a source's own new endpoint may have the address of one that ends.
        """
        if url in self.urls:
            return f"its address is that of {self.urls[url]}"
        ending = self._ending.get(url)
        return f"terminating, by {ending.entry.kind}" if ending is not None and ending is not source else ""


class Merging:
    """Makes backends of endpoints; what was made of an endpoint is kept for as long as it is there."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, Outcome]] = {}  # by name: what it was made of, and the outcome

    def merged(self, plan: Plan, sources: Sequence[Given]) -> Merged:
        """Of endpoints with one name or one address the first is a backend."""
        taken = _Taken(plan, sources)
        made: dict[str, tuple[object, Outcome]] = {}
        outcomes = tuple(
            tuple(self._outcome(plan, source, each, taken, made) for each in source.endpoints) for source in sources
        )
        self._made = made
        return Merged(outcomes)

    def _outcome(
        self, plan: Plan, source: Given, endpoint: Endpoint, taken: _Taken, made: dict[str, tuple[object, Outcome]]
    ) -> Outcome:
        if endpoint.terminating:
            return Outcome(endpoint, None, "terminating")
        if endpoint.name in taken.names:
            return Outcome(endpoint, None, f"its name is taken by {taken.names[endpoint.name]}")
        made_of = (endpoint, source.entry.defaults, source.access, plan.profile)
        known = self._made.get(endpoint.name)
        made[endpoint.name] = known if known is not None and known[0] == made_of else (made_of, _fresh(*made_of))
        outcome = made[endpoint.name][1]
        if outcome.backend is None:
            return outcome
        url = outcome.backend.given.url
        if why := taken.why_not(url, source):
            return Outcome(endpoint, None, why)
        taken.names[endpoint.name], taken.urls[url] = f"another endpoint of {source.entry.kind}", endpoint.name
        return outcome


def _fresh(endpoint: Endpoint, defaults: Any, access: EngineAccess, profile: Any) -> Outcome:
    backend, faults = backend_of(endpoint, defaults, profile)
    if backend is None:
        _log.warning("endpoint %s is skipped: %s", endpoint.name, "; ".join(faults))
        return Outcome(endpoint, None, "; ".join(faults))
    for fault in faults:
        _log.warning("endpoint %s: label ignored: %s", endpoint.name, fault)
    return Outcome(endpoint, FoundBackend(backend, access), "", faults)
