"""Our scheduler beside vLLM's own, in this process and in one of the vLLM environment; no engine is started."""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.local import catalog
from simulator.run.scheduler_worlds import read_worlds
from simulator.run.stepping import walk_world
from tests.scheduler import random_worlds

WALK = Path(random_worlds.__file__).parent / "vllm_walk.py"


@pytest.mark.parametrize("seed", [3, 4])
def test_two_hundred_worlds_are_walked_as_vllm_walks_them(tmp_path: Path, seed: int) -> None:
    """Every step's tokens, every first token, end and preemption; coalesced, all but the steps."""
    try:
        home = catalog.home_folder()
    except catalog.EngineError as error:
        pytest.skip(str(error))
    if missing := catalog.ENGINES["vllm-s"].missing(home):
        pytest.skip(missing)
    source, target = tmp_path / "worlds.json", tmp_path / "walks.json"
    source.write_text(json.dumps(random_worlds.worlds(200, seed)))
    python, model = home / "vllm/bin/python", home / "models" / catalog.ENGINES["vllm-s"].model
    subprocess.run([python, WALK, model, source, target], check=True, capture_output=True)
    real, worlds = json.loads(target.read_text()), read_worlds(source)
    ours = [walk_world(world, coalesce=False).document() for world in worlds]
    assert [n for n, pair in enumerate(zip(ours, real, strict=True)) if pair[0] != pair[1]] == []
    quick = [walk_world(world, coalesce=True).requests for world in worlds]
    assert quick == [walk["requests"] for walk in real]
