"""What a row of the matrix is: how an engine is started, what it serves, how it is made to fail, what it counts."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import Dialect

MODEL = "tiny"
PROMPT = "Tell me of the river, and take your time about it."
CARD = {"memory_gib": 4, "bandwidth_gb_per_s": 20, "tflops": {"bf16": 0.3}}
TOO_LONG = "word " * 20_000
SHAPE = {"params_billions": 0.007, "layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}


@dataclass(frozen=True, slots=True)
class Counters:
    """Where an engine counts itself, as Prometheus text. ``generated``: tokens of its replies in total; ``running`` and
    ``waiting``: requests at this moment, with these labels. An empty name: it has no such counter.
    """

    url: str
    generated: str = ""
    running: str = ""
    waiting: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the engine does not serve. ``prompt``, ``asked``: what provokes it; ``clients_fault``: the answer
    is about the request itself, so that the client gets it with the engine's own status.
    """

    prompt: str = PROMPT
    clients_fault: bool = True
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Requests of other clients, past the gateway: ``seats`` of them run whenever a request of the matrix is sent, and
    are all that the engine runs at once. ``queue`` more wait where a request shall be refused, and are all that may.
    """

    seats: int
    queue: int
    tokens: int = 300


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """One engine of the matrix.

    ``parts``: what is started, in this order; requests go to the last. ``prepare`` makes files that they need.
    ``backend``: its entry in the gateway's config, beside name, url and models. ``model``: what clients call the model;
    ``engine_model``: the engine's own name for it. ``asked``: fields of every request; ``lacks``: those that it
    refuses. ``error_first``: None where nothing makes it refuse. ``error_mid``: a prompt that makes it fail in the
    middle of a reply; ``kills``: a process to kill there, by a word of its command; both empty: the connection is cut
    there. ``long_tokens``: enough that a client can leave before the end. ``frame_is_token``: each frame with text is
    one token, which counts replies of an engine that states no usage. ``adapter``: a folder below the installation from
    which the model is loaded while the engine runs. ``front``: a proxy between clients and the gateway, whose port it
    is given. ``columns``: what the row checks; empty: all.
    """

    name: str
    parts: tuple[catalog.Engine, ...]
    endpoints: tuple[Dialect, ...]
    prepare: Callable[[Path], None] | None = None
    backend: Mapping[str, Any] = field(default_factory=dict)
    model: str = MODEL
    engine_model: str = MODEL
    asked: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    counters: Counters | None = None
    error_first: Refusal | None = None
    error_mid: str = ""
    kills: str = ""
    long_tokens: int = 1_500
    frame_is_token: bool = False
    adapter: str = ""
    crowd: Crowd | None = None
    front: Callable[[int], catalog.Engine] | None = None
    columns: tuple[str, ...] = ()

    @property
    def port(self) -> int:
        """Where requests go."""
        return self.parts[-1].ports[0]

    def missing(self, home: Path) -> str:
        """What is not installed, as a sentence; empty when the engine can start."""
        front = () if self.front is None else (self.front(0),)
        reasons = [reason for part in (*self.parts, *front) if (reason := part.missing(home))]
        unset = "" if "HEADROOM_ENGINES" in os.environ else "HEADROOM_ENGINES is not set, and "
        return unset + "; ".join(reasons) if reasons else ""

    def config(self, url: str) -> dict[str, Any]:
        """The backend's entry, with requests going to *url*."""
        plain = {"name": self.name, "url": url, "models": {self.model: self.engine_model}, "card": CARD, "model": SHAPE}
        return {**plain, "seqs_max": 4, **self.backend}
