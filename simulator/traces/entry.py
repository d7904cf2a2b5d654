"""What a trace consists of: its requests, and the description of a trace format.

Must not depend on any single format, or on what is done with the requests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from router.core.types import Slo

INFEASIBLE: Final = ("best_effort", "refuse")
"""Values of ``slo_infeasible``: how a request is treated whose SLO no backend could meet even when idle. They stand for
``Slo.refuse_infeasible`` False and True."""


@dataclass(init=False, slots=True)
class TraceEntry:
    """One request of a trace. ``arrived_s`` counts from the trace's own zero.

    ``model`` and ``slo_class`` are empty and ``slo`` is None where the trace does not set them. ``sequences``: that the
    engine generates for it, from ``prompts`` of one length; ``prompt_tokens`` and ``output_tokens`` are of all of them.
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


@dataclass(slots=True)
class Reading:
    """What was read from a file: the name of its format, its entries in order of arrival, and the lines left out."""

    format: str
    entries: list[TraceEntry]
    skipped: int = 0
    first_skipped: str = ""
    notes: list[str] = field(default_factory=list)


Parse = Callable[[str], TraceEntry | None]
"""Turns one line into its entry, or into None if the line holds no request. Raises ValueError: what was expected."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format of trace files, and how its files are recognised by their first line.

    A JSONL format lists in ``keys`` the keys of which its first object has at least one, and in ``not_keys`` those it
    has none of; a CSV format lists in ``columns`` the names its header has to contain, in any order and case.
    ``line`` shows a line and ``arrival`` names the unit of its time, both for the documentation. ``parser`` gets the
    first line of the file (for CSV: the header) and returns the parser of the lines. ``note`` is shown to the user.
    """

    name: str
    line: str
    arrival: str
    parser: Callable[[str], Parse]
    keys: tuple[str, ...] = ()
    not_keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    note: str = ""
