"""How the engines of an answer are started: each kind's own command line, and the emulated engine in its place.

Must not depend on how the answer was found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from shlex import join, quote
from types import MappingProxyType
from typing import Final

from router.engines import find
from simulator.planning.variants import CHUNK_TOKENS, CONTEXT_TOKENS_MAX, SEQS_MAX, Mix, Variant
from simulator.pool import replica_names

_FIRST_PORT: Final = 8_001


def replicas(mix: Mix) -> Iterator[tuple[int, str, Variant]]:
    """Port, name and make of each."""
    port = _FIRST_PORT
    for variant, count in mix.parts:
        for name in replica_names(variant.name, count):
            yield port, name, variant
            port += 1


def commands(mix: Mix, models: Sequence[str]) -> Iterator[str]:
    """How each engine is started as planned; of one that has no line here, what it has to be."""
    for port, name, variant in replicas(mix):
        made = _STARTED.get(find(variant.engine).name)
        words = made(variant, models, port) if made is not None else ""
        if not words:
            words = f"{variant.label}, port {port}, {SEQS_MAX} sequences, {CHUNK_TOKENS} tokens a step"
        notes = ", ".join(_notes(variant, words))
        yield f"  {name}: {words}{f'  # {notes}' if notes else ''}"


def _notes(variant: Variant, words: str) -> Iterator[str]:
    """What of the plan the checkpoint has to be, or the engine be started with in a way that has no flag here."""
    if variant.precision not in _DTYPES:
        yield f"weights in {variant.precision}"
    if variant.kv_precision and _KV_FLAG not in words:
        yield f"KV in {variant.kv_precision}"


def rehearsal(mix: Mix, models: Sequence[str]) -> Iterator[str]:
    """The same engines, emulated on this machine."""
    for port, name, variant in replicas(mix):
        kv = f"--kv-precision {variant.kv_precision} " if variant.kv_precision else ""
        yield (
            f"  python -m simulator serve --name {name} --port {port} --card {variant.card.name} --tp {variant.tp} "
            f"--pp {variant.pp} --precision {variant.precision} {kv}--model {variant.model.name} "
            f"--model-name {quote(models[0])} --protocol {_emulated(variant)} "
            f"--max-model-len {variant.context_tokens_max}"
        )


def _emulated(variant: Variant) -> str:
    """Of the protocols of the emulated engine, that of the variant."""
    return "triton" if find(variant.engine).protocol == "triton" else "vllm"


_DTYPES: Final = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_QUANTIZED: Final = {"fp8": "fp8"}  # an engine makes it of 16-bit weights; other precisions are of the checkpoint
_KV_FLAG: Final = "--kv-cache-dtype"
_E4M3: Final = "fp8_e4m3"
_KV_OF_VLLM: Final = {"fp8": "fp8", _E4M3: _E4M3, "fp8_e5m2": "fp8_e5m2"}
_KV_OF_SGLANG: Final = {**_KV_OF_VLLM, "fp8": _E4M3}  # which has no name for either of the two


def _vllm(variant: Variant, models: Sequence[str], port: int) -> str:
    words = [
        f"vllm serve $CHECKPOINT --served-model-name {join(models)} --port {port}",
        f"--tensor-parallel-size {variant.tp} --pipeline-parallel-size {variant.pp}",
        f"--max-num-seqs {SEQS_MAX} --max-num-batched-tokens {CHUNK_TOKENS}",
        *_flags(variant, "--dtype", "--quantization", "--max-model-len", _KV_OF_VLLM),
    ]
    return " ".join(words)


def _sglang(variant: Variant, models: Sequence[str], port: int) -> str:
    words = [
        f"python -m sglang.launch_server --model-path $CHECKPOINT --served-model-name {quote(models[0])} --port {port}",
        f"--tp-size {variant.tp} --pp-size {variant.pp}",
        f"--max-running-requests {SEQS_MAX} --chunked-prefill-size {CHUNK_TOKENS}",
        *_flags(variant, "--dtype", "--quantization", "--context-length", _KV_OF_SGLANG),
    ]
    return " ".join(words)


def _tensorrt_llm(variant: Variant, models: Sequence[str], port: int) -> str:
    words = [
        f"trtllm-serve $CHECKPOINT --port {port} --tp_size {variant.tp} --pp_size {variant.pp}",
        f"--max_batch_size {SEQS_MAX} --max_num_tokens {CHUNK_TOKENS}",
        *_flags(variant, "", "", "--max_seq_len", {}),
    ]
    return " ".join(words)


_STARTED: Final[Mapping[str, Callable[[Variant, Sequence[str], int], str]]] = MappingProxyType({
    "vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm,
})  # fmt: skip


def _flags(variant: Variant, dtype: str, quantization: str, longest: str, kv: Mapping[str, str]) -> Iterator[str]:
    """Of the weights, of the KV cache, and of the longest request where that is less than an engine's own limit."""
    if dtype and variant.precision in _DTYPES:
        yield f"{dtype} {_DTYPES[variant.precision]}"
    if quantization and variant.precision in _QUANTIZED:
        yield f"{quantization} {_QUANTIZED[variant.precision]}"
    if variant.context_tokens_max < CONTEXT_TOKENS_MAX:
        yield f"{longest} {variant.context_tokens_max}"
    if variant.kv_precision and variant.kv_precision in kv:
        yield f"{_KV_FLAG} {kv[variant.kv_precision]}"
