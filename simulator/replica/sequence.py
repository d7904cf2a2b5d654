"""The start parameters of an engine, and one request inside it. Plain data; `replica.py` changes it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

from router.core.types import Fact
from simulator.replica.blocks import Hold, Text

ARRIVING: Final = 0
WAITING: Final = 1
PREFILL: Final = 2
DECODE: Final = 3
ENDED: Final = 4
UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class EngineLimits(Fact):
    """What an engine was started with (vLLM's names: max_num_seqs, max_num_batched_tokens, block_size,
        num_gpu_blocks, max_model_len, max_num_queued_reqs, enable_prefix_caching, scheduling_policy=priority).

    ``queue_max``: unfinished requests, running ones included, above which one more is refused; each choice counts.
    ``queue_tokens_max``: a request is refused while the prompts of those without a first token have as many tokens
    (max_num_queued_tokens): all of each prompt, whatever of it is computed or cached, as the API server counts.
    ``adapters_max``: different adapters in one step (max_loras; 0: no bound); a request for one more waits, and those
    behind it go ahead. ``async_scheduling``: a step is decided while the one before it runs (async_scheduling), so an
    arrival is seen a step later, and a sequence leaves its room a step later; one that ends by itself, and not by a cap
    that it stated, has another token computed until then.
    ``reserve_prompt``: a request is admitted once free blocks could hold all of its prompt, though the first chunk
    takes less (scheduler_reserve_full_isl; engines before it looked at the first chunk). ``watermark``: the share of
    the blocks that stays free beside an admitted request while others run. ``active_max``: sequences that run at most,
    if fewer than ``seqs_max`` (max_num_active_seqs; 0: as many). ``long_prompt_chunk``: the most of one prompt in a
    step while other requests are there (long_prefill_token_threshold; 0: no bound), with ``long_prompt_adaptive`` at
    least an equal share of the step (long_prefill_token_threshold_adaptive).

    ``no_evict``: TensorRT-LLM's in-flight batching (GUARANTEED_NO_EVICT): a request runs once the cache can hold its
    prompt and the longest reply it may have, so none is ever preempted; a prompt is cut only where it
    comes first in a step.
    """

    seqs_max: int = 256
    chunk_tokens: int = 2048
    block_tokens: int = 16
    kv_blocks: int = 10_000
    model_tokens_max: int = 131_072
    queue_max: int = UNLIMITED
    prefix_caching: bool = True
    priority: bool = False
    no_evict: bool = False
    reserve_prompt: bool = True
    watermark: float = 0.0
    active_max: int = 0
    long_prompt_chunk: int = 0
    long_prompt_adaptive: bool = False
    queue_tokens_max: int = UNLIMITED
    adapters_max: int = 0
    async_scheduling: bool = False

    def __post_init__(self) -> None:
        """ValueError names what cannot be."""
        for name in ("seqs_max", "chunk_tokens", "block_tokens", "kv_blocks", "model_tokens_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.chunk_tokens < self.seqs_max:
            raise ValueError(f"chunk_tokens ({self.chunk_tokens}) must be at least seqs_max ({self.seqs_max})")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark must be 0 or more and less than 1, got {self.watermark}")
        if not 0 <= self.active_max <= self.seqs_max:
            raise ValueError(f"active_max must be between 0 and seqs_max ({self.seqs_max}), got {self.active_max}")
        if not 0 <= self.long_prompt_chunk <= self.model_tokens_max:
            raise ValueError(f"long_prompt_chunk must be 0 to model_tokens_max, got {self.long_prompt_chunk}")

    @property
    def prompt_tokens_max(self) -> int:
        """The longest prompt taken: one token of reply has to fit, in the model and in the cache."""
        return min(self.model_tokens_max, self.kv_blocks * self.block_tokens) - 1


class Sequence:
    """One request inside an engine. ``output_tokens`` is the future length of the reply, known to
    the simulation alone.
    """

    __slots__ = (
        "adapter",
        "attempt",
        "cached_tokens",
        "computed",
        "ends_itself",
        "finish_step",
        "generated",
        "holds",
        "id",
        "known_tokens",
        "listener",
        "offset",
        "order",
        "output_tokens",
        "own",
        "preemptions",
        "prefix",
        "priority",
        "prompt_tokens",
        "reply_tokens_max",
        "reserved_blocks",
        "shared_blocks",
        "siblings",
        "state",
        "turn",
        "unit_blocks",
        "unit_tokens",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's word
        prompt_tokens: int,
        output_tokens: int,
        attempt: int = 1,
        priority: int = 0,
        prefix: tuple[Hashable, ...] = (),
        unit_tokens: int = 0,
        known_tokens: int = 0,
    ) -> None:
        """*prefix*: hashes of the text's successive stretches of *unit_tokens*, each covering all before it; of the
        first *known_tokens* of the text, prompt and reply (0: of the prompt).
        """
        self.id = id
        self.listener: Any = None  # the router that sent it (see run.fleet.SequenceListener)
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.attempt = attempt
        self.adapter = ""  # none: the model itself
        self.ends_itself = False  # by a token that nobody foresaw
        self.priority = priority
        self.state = ARRIVING
        self.order = self.generated = self.preemptions = 0
        self.turn = 0  # of admission to the batch: grows with each
        self.computed = 0  # tokens in KV while prefilling; while decoding it is offset + the engine's step number
        self.offset = self.finish_step = 0
        self.cached_tokens = -1  # of the prompt, found at first admission
        self.prefix = prefix
        self.reply_tokens_max = output_tokens  # the longest reply the request allows
        self.reserved_blocks = 0
        self.shared_blocks = 0  # of the blocks it uses, those that lie in units
        if prefix:
            self.unit_tokens = unit_tokens
            self.known_tokens = known_tokens or prompt_tokens
        self.unit_blocks: list[int] = []
        self.holds: list[Hold] = []  # those, to give back
        self.own: Text | None = None  # what it had computed beside units when it was preempted
        self.siblings: tuple[Sequence, ...] = ()  # others of the same request; the first of them has them

    @property
    def decodes(self) -> bool:
        """Whether its text is in KV and it generates one token a step."""
        return self.state == DECODE
