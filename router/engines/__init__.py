"""Engine kinds: one file an engine. A module of this package that defines ``KIND`` (or ``KINDS``) is registered.

The modules are found with pkgutil, so a new engine is one new file here and no other edit. Everything that depends on
the kind of an engine (health, metrics, errors, translation, step times, the simulator's scheduler) reads it from the
``EngineKind``; nothing else compares names of engines. Must not depend on the gateway or the simulator.
"""

from router.engines.facts import EngineFacts, EnginePages, ListedModel, model_list
from router.engines.kind import (
    OPENAI_PROTOCOL,
    EngineKind,
    Era,
    ErrorDialect,
    MetricsPage,
    OpenAICall,
    Scheduler,
    Translation,
    error_names,
)
from router.engines.prometheus import RunningAdapters, ScrapedPage, Snapshot
from router.engines.registry import discover, find, find_or_default, kinds, read_metrics

__all__ = [
    "OPENAI_PROTOCOL",
    "EngineFacts",
    "EngineKind",
    "EnginePages",
    "Era",
    "ErrorDialect",
    "ListedModel",
    "MetricsPage",
    "OpenAICall",
    "RunningAdapters",
    "Scheduler",
    "ScrapedPage",
    "Snapshot",
    "Translation",
    "discover",
    "error_names",
    "find",
    "find_or_default",
    "kinds",
    "model_list",
    "read_metrics",
]
