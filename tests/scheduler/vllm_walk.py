"""What vLLM's own scheduler does in scheduler worlds: ``PYTHON vllm_walk.py MODEL_FOLDER WORLDS.json OUT.json``.

PYTHON is that of an environment with vLLM 0.32; MODEL_FOLDER needs a config.json alone. No engine is started: every
step takes one unit of time, and each sampled token is a fresh one. OUT.json has the form that
``python -m simulator steps --json`` writes.
"""

import json
import os
import sys
from collections import deque
from typing import Any

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

STEPS_MAX = 20_000
SHARED_MAX = 10_000  # token ids of one group
World = dict[str, Any]


class Walk:
    """One world under way."""

    def __init__(self, world: World, model: ModelConfig) -> None:
        self.scheduler = scheduler_of(world, model)
        self.hasher = get_request_block_hasher(world["block_tokens"], sha256)
        self.coming = deque(world["requests"])
        self.token = 10 * SHARED_MAX  # the last fresh one
        self.now = 0.0
        self.live: dict[str, Request] = {}
        self.requests: dict[str, dict[str, float]] = {}
        self.steps: list[list[Any]] = []

    def run(self) -> World:
        """Until the last request has ended."""
        arrived = 0
        for _ in range(STEPS_MAX):
            while self.coming and self.coming[0]["at"] <= self.now:
                self.arrive(self.coming.popleft(), arrived)
                arrived += 1
            if self.live:
                self.step()
            elif self.coming:
                self.now = self.coming[0]["at"]
            else:
                break
        return {"requests": self.requests, "steps": self.steps}

    def fresh(self) -> int:
        """A token id that was not there before."""
        self.token += 1
        return self.token

    def arrive(self, one: World, order: int) -> None:
        """A request with its text: what its group shares, then fresh tokens."""
        shared = one.get("depth", 0) * one.get("unit", 0)
        text = [one.get("group", 0) * SHARED_MAX + n for n in range(shared)]
        text += [self.fresh() for _ in range(one["prompt"] - shared)]
        request = Request(
            request_id=one["id"],
            prompt_token_ids=text,
            sampling_params=SamplingParams(temperature=0, ignore_eos=True, max_tokens=one["output"]),
            pooling_params=None,
            mm_features=None,
            block_hasher=self.hasher,
            priority=one.get("priority", 0),
            arrival_time=float(order),
        )
        self.scheduler.add_request(request)
        self.live[one["id"]] = request
        self.requests[one["id"]] = {}

    def step(self) -> None:
        """Schedule, let time pass, report the tokens that were sampled."""
        scheduler = self.scheduler
        decided = scheduler.schedule()
        self.now += 1.0
        names = list(decided.num_scheduled_tokens)
        if not names:
            return
        sampled = []
        for name in names:
            request = self.live[name]
            caught_up = request.num_computed_tokens >= request.num_tokens
            sampled.append([self.fresh()] if caught_up else [])
            if caught_up:
                self.requests[name].setdefault("first", self.now)
        self.steps.append([self.now, dict(decided.num_scheduled_tokens)])
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: n for n, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        scheduler.update_from_output(decided, output)
        for name, request in list(self.live.items()):
            if request.is_finished():
                self.requests[name] |= {"end": self.now, "preemptions": request.num_preemptions}
                del self.live[name]


def scheduler_of(world: World, model: ModelConfig) -> Scheduler:
    """vLLM's scheduler, configured as the world says."""
    size, blocks = world["block_tokens"], world["kv_blocks"] + 1  # the pool keeps a null block
    scheduling = SchedulerConfig(
        max_num_seqs=world["seqs_max"],
        max_num_batched_tokens=world["step_tokens"],
        max_model_len=model.max_model_len,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=False,
        policy="priority" if world.get("priority") else "fcfs",
        scheduler_reserve_full_isl=world.get("reserve_prompt", True),
        long_prefill_token_threshold=world.get("long_prompt_chunk", 0),
        long_prefill_token_threshold_adaptive=world.get("long_prompt_adaptive", False),
        max_num_active_seqs=world.get("active_max") or None,
        watermark=world.get("watermark", 0.0),
    )
    caching = world.get("prefix_caching", True)
    cache = CacheConfig(block_size=size, cache_dtype="auto", enable_prefix_caching=caching)
    config = VllmConfig(
        scheduler_config=scheduling, model_config=model, cache_config=cache, device_config=DeviceConfig("cpu")
    )
    cache.num_gpu_blocks = blocks
    cache.enable_prefix_caching = caching
    spec = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["all"], spec)]
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=size,
        hash_block_size=size,
        log_stats=False,
    )


if __name__ == "__main__":
    folder, source, target = sys.argv[1:]
    init_none_hash(sha256)
    model = ModelConfig(model=folder, tokenizer=folder, dtype="float32", seed=0, skip_tokenizer_init=True)
    with open(source, encoding="utf-8") as file:
        given = json.load(file)
    with open(target, "w", encoding="utf-8") as file:
        json.dump([Walk(world, model).run() for world in given], file)
