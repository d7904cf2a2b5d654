"""Random scheduler worlds, small and often short of blocks: ``python -m tests.scheduler.random_worlds COUNT SEED``.

Their form is that of ``simulator/run/scheduler_worlds.py``. Most are small, because a decision that is wrong shows in a
handful of requests as well as in a thousand, and can be read there. A third of them set options that engines leave at
their defaults.
"""

import json
import sys
from random import Random
from typing import Any

World = dict[str, Any]


def limits(draw: Random, longest: int) -> World:
    """An engine that can hold one request of that many tokens, and often not much more."""
    size = draw.choice([1, 4, 8, 16])
    step_tokens = draw.choice([8, 16, 48, 64, 200])
    alone = longest // size + 2
    return {
        "block_tokens": size,
        "step_tokens": step_tokens,
        "seqs_max": draw.randint(1, min(step_tokens, 20)),
        "kv_blocks": alone + int(alone * draw.choice([0, 0.3, 1, 1, 2, 30])),
        "priority": draw.random() < 0.25,
    }


def options(draw: Random, world: World) -> World:
    """What few engines are started with."""
    given: World = {}
    if draw.random() < 0.5:
        given["long_prompt_chunk"] = draw.randint(1, world["step_tokens"])
        given["long_prompt_adaptive"] = draw.random() < 0.3
    if draw.random() < 0.3:
        given["active_max"] = draw.randint(1, world["seqs_max"])
    if draw.random() < 0.3:
        given["watermark"] = draw.choice([0.01, 0.05, 0.2])
    if draw.random() < 0.3:
        given["reserve_prompt"] = False
    if draw.random() < 0.2:
        given["prefix_caching"] = False
    if draw.random() < 0.3:
        given["adapters_max"] = draw.randint(1, 3)
    return given


def requests(draw: Random, world: World, prompts: int, replies: int) -> list[World]:
    """Bursts, pauses, and where the world draws it groups whose prompts begin alike."""
    unit = world["block_tokens"] * draw.choice([1, 2, 3]) if draw.random() < 0.5 else 0
    depths = [draw.randint(1, 5) for _ in range(3)]
    urgencies = 3 if world["priority"] else 1
    choices = draw.random() < 0.25
    gap = draw.choice([0.0, 0.2, 1.0, 4.0])
    at, found = 0.0, []
    for number in range(draw.randint(2, 24)):
        prompt = draw.randint(1, prompts)
        if unit and draw.random() < 0.2:
            prompt = max(1, prompt // unit * unit)  # all of it in whole blocks
        one: World = {"id": f"q{number}", "at": round(at, 2), "prompt": prompt, "output": draw.randint(1, replies)}
        one["priority"] = draw.randrange(urgencies)
        if unit and (group := draw.randrange(4)) < len(depths) and (depth := min(depths[group], prompt // unit)):
            one |= {"group": group, "depth": depth, "unit": unit}
        if world.get("adapters_max") and (adapter := draw.randrange(6)):
            one["adapter"] = f"a{adapter}"
        if choices and draw.random() < 0.4:
            one["n"] = draw.randint(2, 4)
        found.append(one)
        at += draw.choice([0.0, gap, gap * draw.random(), 40.0 if draw.random() < 0.1 else 1.0])
    return found


def worlds(count: int, seed: int) -> list[World]:
    """*count* of them; the same for the same *seed*."""
    draw, made = Random(seed), []
    for _ in range(count):
        prompts, replies = draw.choice([10, 50, 150]), draw.choice([1, 5, 20, 60])
        world = limits(draw, prompts + replies)
        if draw.random() < 0.35:
            world |= options(draw, world)
        made.append(world | {"requests": requests(draw, world, prompts, replies)})
    return made


if __name__ == "__main__":
    json.dump(worlds(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
