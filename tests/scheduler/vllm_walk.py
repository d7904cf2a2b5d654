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
from vllm.config import CacheConfig, DeviceConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

STEPS_MAX = 20_000
SHARED_MAX = 10_000  # token ids of one group
CHOICES_MAX = 1_000
END_TOKEN = 1
STEPS_AHEAD = 2  # that which runs, and the next
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
        self.parents: dict[str, str] = {}  # the request of each choice
        self.adapters: dict[str, int] = {}
        self.ends: dict[str, int] = {}  # the tokens of replies that end by themselves
        self.asynchronous = world.get("async_scheduling", False)
        self.decided: deque[tuple[SchedulerOutput, list[bool]]] = deque()
        self.requests: dict[str, dict[str, float]] = {}
        self.steps: list[list[Any]] = []

    def run(self) -> World:
        """Until the last request has ended."""
        for _ in range(STEPS_MAX):
            while self.coming and self.coming[0]["at"] <= self.now:
                self.arrive(self.coming.popleft())
            if self.live and self.decide():
                continue
            if self.decided:
                self.settle(*self.decided.popleft())
            elif self.coming and not self.live:
                self.now = self.coming[0]["at"]
            elif self.live:
                self.now += 1.0  # a step in which nobody has a token
            else:
                break
        return {"requests": self.requests, "steps": self.steps}

    def fresh(self) -> int:
        """A token id that was not there before."""
        self.token += 1
        return self.token

    def token_of(self, name: str) -> int:
        """What the model samples: the end where a reply ends by itself."""
        request, end = self.live.get(name), self.ends.get(name)
        if request is not None and end is not None and request.num_output_tokens + 1 == end:
            return END_TOKEN
        return self.fresh()

    def adapter(self, name: str) -> LoRARequest | None:
        """The adapter of that name, numbered as it comes."""
        if not name:
            return None
        number = self.adapters.setdefault(name, len(self.adapters) + 1)
        return LoRARequest(lora_name=name, lora_int_id=number, lora_path=name)

    def arrive(self, one: World) -> None:
        """A request with its text: what its group shares, then fresh tokens."""
        order = len(self.requests)
        shared = one.get("depth", 0) * one.get("unit", 0)
        text = [one.get("group", 0) * SHARED_MAX + n for n in range(shared)]
        text += [self.fresh() for _ in range(one["prompt"] - shared)]
        self.requests[one["id"]] = {}
        choices = one.get("n", 1)
        for number in range(choices):
            name = one["id"] if choices == 1 else f"{number}_{one['id']}"  # as vLLM names them
            request = Request(
                request_id=name,
                prompt_token_ids=text,
                sampling_params=sampling_of(one),
                pooling_params=None,
                mm_features=None,
                block_hasher=self.hasher,
                priority=one.get("priority", 0),
                arrival_time=order + number / CHOICES_MAX,
                lora_request=self.adapter(one.get("adapter", "")),
            )
            self.scheduler.add_request(request)
            self.live[name] = request
            self.parents[name] = one["id"]
            if one.get("eos"):
                self.ends[name] = one["output"]

    def decide(self) -> bool:
        """Schedule a step; whether another is scheduled before time passes, as the engine does beside a running one."""
        decided = self.scheduler.schedule()
        if not decided.num_scheduled_tokens:
            if not self.asynchronous:
                self.decided.append((decided, []))
            return False
        samples = [not self.live[name].is_prefill_chunk for name in decided.num_scheduled_tokens]
        self.decided.append((decided, samples))
        return self.asynchronous and len(self.decided) < STEPS_AHEAD

    def settle(self, decided: SchedulerOutput, samples: list[bool]) -> None:
        """Let the time of a step pass, report the tokens that were sampled in it."""
        scheduler = self.scheduler
        self.now += 1.0
        names = list(decided.num_scheduled_tokens)
        if not names:
            return
        sampled = []
        for name, caught_up in zip(names, samples, strict=True):
            sampled.append([self.token_of(name)] if caught_up else [])
            if caught_up:
                self.requests[self.parents[name]].setdefault("first", self.now)
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
                happened = self.requests[self.parents[name]]
                before = happened.get("preemptions", 0)
                happened |= {"end": self.now, "preemptions": before + request.num_preemptions}
                del self.live[name]


def sampling_of(one: World) -> SamplingParams:
    """A reply of so many tokens: by its cap, or by its end."""
    if one.get("eos"):
        return SamplingParams(temperature=0, max_tokens=2 * one["output"] + 8, stop_token_ids=[END_TOKEN])
    return SamplingParams(temperature=0, ignore_eos=True, max_tokens=one["output"])


def scheduler_of(world: World, model: ModelConfig) -> Scheduler:
    """vLLM's scheduler, configured as the world says."""
    size, blocks = world["block_tokens"], world["kv_blocks"] + 1  # the pool keeps a null block
    asynchronous = world.get("async_scheduling", False)
    scheduling = SchedulerConfig(
        max_num_seqs=world["seqs_max"],
        max_num_batched_tokens=world["step_tokens"],
        max_model_len=model.max_model_len,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=asynchronous,
        policy="priority" if world.get("priority") else "fcfs",
        scheduler_reserve_full_isl=world.get("reserve_prompt", True),
        long_prefill_token_threshold=world.get("long_prompt_chunk", 0),
        long_prefill_token_threshold_adaptive=world.get("long_prompt_adaptive", False),
        max_num_active_seqs=world.get("active_max") or None,
        watermark=world.get("watermark", 0.0),
    )
    caching = world.get("prefix_caching", True)
    cache = CacheConfig(block_size=size, cache_dtype="auto", enable_prefix_caching=caching)
    adapters = world.get("adapters_max", 0)
    config = VllmConfig(
        scheduler_config=scheduling,
        model_config=model,
        cache_config=cache,
        device_config=DeviceConfig("cpu"),
        lora_config=LoRAConfig(max_loras=adapters) if adapters else None,
    )
    cache.num_gpu_blocks = blocks
    cache.enable_prefix_caching = caching
    spec = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["all"], spec)]
    kind = AsyncScheduler if asynchronous else Scheduler
    return kind(
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
