"""What a trace consists of: its requests, and the description of a trace format.

Must not depend on any single format, or on what is done with the requests.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from router.core.types import Slo

INFEASIBLE: Final = ("best_effort", "refuse")
"""Values of ``slo_infeasible``: how a request is treated whose SLO no backend could meet even when idle. They stand for
``Slo.refuse_infeasible`` False and True."""


@dataclass(init=False, slots=True)
class TraceEntry:
    """One request of a trace. ``arrived_s`` counts from the trace's own zero.

    ``model`` and ``slo_class`` are empty and ``slo`` is None where the trace does not set them. ``sequences``: that the
    engine generates for it, from ``prompts`` of one length; ``prompt_tokens`` and ``output_tokens`` are of all of them.
    ``fallback``: ``allow`` or ``deny`` where it states whether another model may serve it. ``requested_model``: the
    client's name where a split had selected ``model`` by then: it is not split again.
    ``after``: ids of requests of the same trace that have to end first; it arrives ``delay_s`` after the last of them,
    or at ``arrived_s`` where there are none. ``known_prefix``: hashes of prompt and reply together, if a later prompt
    begins with both.
    """

    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    id: str
    model: str
    slo_class: str
    slo: Slo | None
    output_tokens_max: int
    priority: int
    tenant: str
    session: str
    prefix: tuple[int, ...]
    prefix_block_tokens: int
    streamed: bool
    sequences: int
    prompts: int
    after: tuple[str, ...]
    delay_s: float
    known_prefix: tuple[int, ...]
    fallback: str
    requested_model: str

    def __init__(
        self,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens: int,
        id: str = "",  # noqa: A002 - the name of the field
        model: str = "",
        slo_class: str = "",
        slo: Slo | None = None,
        output_tokens_max: int = 0,
        priority: int = 0,
        tenant: str = "",
        session: str = "",
        prefix: tuple[int, ...] = (),
        prefix_block_tokens: int = 0,
        streamed: bool = True,
        sequences: int = 1,
        prompts: int = 1,
        after: tuple[str, ...] = (),
        delay_s: float = 0.0,
        known_prefix: tuple[int, ...] = (),
        fallback: str = "",
        requested_model: str = "",
    ) -> None:
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.id = id
        self.model = model
        self.slo_class = slo_class
        self.slo = slo
        self.output_tokens_max = output_tokens_max
        self.priority = priority
        self.tenant = tenant
        self.session = session
        self.prefix = prefix
        self.prefix_block_tokens = prefix_block_tokens
        self.streamed = streamed
        self.sequences = sequences
        self.prompts = prompts
        self.after = after
        self.delay_s = delay_s
        self.known_prefix = known_prefix
        self.fallback = fallback
        self.requested_model = requested_model


class LeftOut:
    """A request of a trace that cannot be replayed, and why."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        """*why* completes "n requests ..." and is counted."""
        self.why = why


Parsed = TraceEntry | LeftOut | list[TraceEntry] | None
"""What a line, or a record of a document, holds: its request, or several; None if there is none."""


class LineParser(Protocol):
    """Reads the lines of one file in their order. No base class: formats are not compiled, and this module is."""

    def read(self, line: str) -> Parsed:
        """One line. Raises ValueError: what was expected."""
        ...

    def finish(self, entries: list[TraceEntry]) -> dict[str, int]:
        """The file is over: completes *entries*, and returns by reason how many requests it has that no line gave."""
        ...


@dataclass(slots=True)
class Reading:
    """What was read from a file: the name of its format, its entries in order of arrival, and what was left out: bad
    lines, and requests by reason. ``shared_hashes``: see ``TraceFormat``.
    """

    format: str
    entries: list[TraceEntry]
    skipped: int = 0
    first_skipped: str = ""
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    caution: str = ""
    shared_hashes: bool = False


Document = Callable[[Mapping[str, Any]], Iterator[tuple[str, Callable[[], Parsed]]]]
"""The requests of a JSON document: for each its place, and a function that reads it or raises ValueError."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format of trace files, and how its files are recognised by their first line.

    A JSONL format lists in ``keys`` the keys of which its first object has at least one, and in ``not_keys`` those it
    has none of; a CSV format lists in ``columns`` the names its header has to contain, in any order and case.
    ``line`` shows a line and ``arrival`` names the unit of its time, both for the documentation; ``example`` is a whole
    file, if ``line`` alone is none. ``parser`` gets the first line of the file (for CSV: the header) and returns the
    parser of the lines. A format whose file is one JSON document has ``document`` instead: it yields for each request
    its place in the document and a function that reads it. ``note`` describes the format. ``caution``, what of its
    entries is an estimate, is shown whenever such a file is played. ``shared_hashes``: whether equal prefix hashes mean
    equal texts in different files too.
    """

    name: str
    line: str
    arrival: str
    parser: Callable[[str], LineParser] | None = None
    keys: tuple[str, ...] = ()
    not_keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    note: str = ""
    caution: str = ""
    example: str = ""
    document: Document | None = None
    shared_hashes: bool = False
