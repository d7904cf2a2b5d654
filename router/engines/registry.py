"""Finds engine kinds by name, and metrics pages by what they contain.

The modules of this package are imported at the first look-up. Must not depend on any one kind.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from router.core.errors import UnknownEngine
from router.core.signals import Value, registered
from router.engines.facts import EngineFacts, EnginePages
from router.engines.kind import OPENAI_PROTOCOL, EngineKind, MetricsPage
from router.engines.prometheus import ScrapedPage, Snapshot
from router.spelling import suggestion

_VERSION_LENGTH_MAX: Final = 20


@cache
def kinds() -> tuple[EngineKind, ...]:
    """Every engine kind, by name. Raises ValueError when two claim one name."""
    found = tuple(sorted(_modules_kinds(), key=lambda kind: kind.name))
    claimed: dict[str, str] = {}
    for kind in found:
        for name in {_plain(each) for each in (kind.name, *kind.aliases)}:
            if name in claimed:
                raise ValueError(f"engine kinds {claimed[name]!r} and {kind.name!r} both claim the name {name!r}")
            claimed[name] = kind.name
    return found


def _modules_kinds() -> Iterator[EngineKind]:
    package = import_module(__name__.rpartition(".")[0])
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        contents = vars(import_module(module.name))
        yield from contents.get("KINDS", [contents["KIND"]] if "KIND" in contents else [])


@cache
def _by_name() -> dict[str, EngineKind]:
    table: dict[str, EngineKind] = {}
    for kind in kinds():
        table |= {
            _plain(era.row): replace(kind, prior=era.row, eras=(), version=era.since)
            for era in kind.eras
            if _plain(era.row).startswith(kind.name)
        }
    for kind in kinds():
        table |= {_plain(name): kind for name in (kind.name, *kind.aliases)}
    return table


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def find(name: str, protocol: str | None = None) -> EngineKind:
    """The kind of that name or alias, of an era (``vllm-2024``) or of a version (``vllm@0.9``). Raises UnknownEngine.

    *protocol*: the API it serves when that is not the kind's own, such as TensorRT-LLM behind Triton.
    """
    plain, at, version = _plain(name).partition("@")
    kind = _by_name().get(plain)
    if kind is None:
        raise UnknownEngine(_unknown("engine", plain if at else name, _by_name()))
    if at:
        kind = kind.of_version(_version(version, name))
    if protocol is None or protocol == kind.protocol:
        return kind
    return replace(
        _serving(protocol), prior=kind.prior, eras=kind.eras, scheduler=kind.scheduler,
        version=kind.version, whole_prompts_since=kind.whole_prompts_since,
    )  # fmt: skip


def _version(text: str, name: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdecimal() and minor.isdecimal() and len(text) < _VERSION_LENGTH_MAX):
        raise UnknownEngine(f"engine {name!r}: expected a version after @, as in vllm@0.9")
    return int(major), int(minor)


def _serving(protocol: str) -> EngineKind:
    """The kind that stands for a protocol: the one that bears its name."""
    serving = {each.protocol: each for each in kinds() if each.name == each.protocol}
    if protocol not in serving:
        raise UnknownEngine(_unknown("protocol", protocol, serving))
    return serving[protocol]


def forget() -> None:
    """Look for the package's modules anew at the next look-up."""
    kinds.cache_clear()
    _by_name.cache_clear()


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    return f"unknown {what} {name!r}; {suggestion(_plain(name), sorted(known))}"


def find_or_default(engine: str | None, protocol: str | None) -> EngineKind:
    """The kind a config describes with either key, both or none. Raises UnknownEngine."""
    return find(engine, protocol) if engine else _serving(protocol or OPENAI_PROTOCOL)


async def discover(pages: EnginePages, kind: EngineKind | None = None) -> tuple[EngineKind, EngineFacts] | None:
    """The kind of the engine with these *pages* and its facts, or None when no kind recognises it. Raises Unanswered.

    *kind*: tried first, since the config names it. The kind of plain OpenAI servers takes whatever is left.
    """
    plain = find(OPENAI_PROTOCOL)
    for each in ([kind] if kind else []) + [each for each in kinds() if each is not plain] + [plain]:
        facts = await each.discover(pages) if each.discover is not None else None
        if facts is not None:
            return kind or each, facts
    return None


def read_metrics(page: bytes, models: Collection[str] = ()) -> Snapshot | None:
    """The metrics on *page*, or None when it is of no known engine.

    *models*: the engine's names of the models routed to it; a Triton that serves others too is read for these alone.
    """
    scraped = ScrapedPage(page, models)
    for kind in kinds():
        metrics = kind.metrics
        if metrics is not None and scraped.begins_a_line(*metrics.signatures):
            return replace(metrics.read(scraped), signals=_signals(kind.name, metrics, scraped))
    return None


def _signals(kind: str, metrics: MetricsPage, page: ScrapedPage) -> dict[str, Value]:
    """What the page gives for each signal that is read from pages of this kind."""
    readings = {each.name: metrics.signals.get(each.name) or each.live.get(kind) for each in registered()}
    return {name: reading.read(page) for name, reading in readings.items() if reading is not None}
