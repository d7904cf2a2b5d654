"""Any server with OpenAI's API that has no kind of its own, and the servers that differ in their step times alone."""

from typing import Final

from router.engines.facts import EngineFacts, EnginePages, bases, listed, longest, names
from router.engines.kind import EngineKind


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """Whatever lists models as OpenAI does."""
    entries = bases(listed(await pages.json("/v1/models")))
    if not entries:
        return None
    return EngineFacts(names(entries), context_tokens_max=longest(entries, "max_model_len", "context_window"))


KIND: Final = EngineKind(name="openai", prior="vllm", aliases=("generic",), discover=_discover)

KINDS: Final = (
    KIND,
    EngineKind(name="lmdeploy", prior="lmdeploy", aliases=("turbomind", "lmdeploy-turbomind"), default_port=23333),
    EngineKind(name="transformers", prior="transformers", aliases=("hf-accelerate", "huggingface")),
    EngineKind(name="deepspeed", prior="deepspeed", aliases=("deepspeed-mii", "deepspeed-inference")),
    EngineKind(name="fastertransformer", prior="fastertransformer"),
    EngineKind(name="megatron", prior="megatron"),
)
