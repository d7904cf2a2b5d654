"""Any server with OpenAI's API that has no kind of its own, and the servers that differ in their step times alone."""

from typing import Final

from router.engines.kind import EngineKind

KIND: Final = EngineKind(name="openai", prior="vllm", aliases=("generic",))

KINDS: Final = (
    KIND,
    EngineKind(name="lmdeploy", prior="lmdeploy", aliases=("turbomind", "lmdeploy-turbomind"), default_port=23333),
    EngineKind(name="transformers", prior="transformers", aliases=("hf-accelerate", "huggingface")),
    EngineKind(name="deepspeed", prior="deepspeed", aliases=("deepspeed-mii", "deepspeed-inference")),
    EngineKind(name="fastertransformer", prior="fastertransformer"),
    EngineKind(name="megatron", prior="megatron"),
)
