"""The autoscaler takes another config while it runs, whole or not at all."""

from pathlib import Path

import pytest

from router.autoscaler.loop import Autoscaler, make_target
from router.gateway.config.plan import plan_file
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.reload import Reloader
from tests.targets.test_targets import CONFIG as ANY_TARGET
from tests.targets.test_targets import receiver, views

CONFIG = ANY_TARGET.replace("TARGET", "advise")


def reloader(path: Path) -> tuple[Autoscaler, Reloader]:
    plan = plan_file(path)
    scaler = Autoscaler(plan, make_target(plan.target), settled_s=0.0)
    loading = Reloader(path, plan, scaler.adopt, scaler.metrics, Audit(), stores=False)
    loading.complete = scaler.offered
    return scaler, loading


async def test_bounds_and_target_of_a_new_config_hold_from_the_next_round(tmp_path: Path) -> None:
    """A target whose options are the same stays: it holds what it did."""
    path = tmp_path / "r.yaml"
    path.write_text(CONFIG)
    scaler, loading = reloader(path)
    before = scaler._target
    async with receiver() as it:
        (one,) = await scaler.round(views)
        assert one.replicas == 5
        path.write_text(CONFIG.replace("max_replicas: 5", "max_replicas: 2"))
        assert (await loading.reload("test")).ok
        assert scaler._target is before
        (one,) = await scaler.round(views)
        assert one.replicas == 2
        path.write_text(ANY_TARGET.replace("TARGET", f"{{name: webhook, url: '{it.url}'}}"))
        assert (await loading.reload("test")).ok
        await scaler.round(views)
        assert [body["replicas"] for body in it.bodies] == [5]
        await scaler.close()
    assert (
        scaler.metrics.registry.get_sample_value("headroom_autoscale_config_reloads_total", {"result": "taken"}) == 3
    )  # the first at the start


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("autoscale: {target: {name: webhook, url: 'http://h:1', token_env: NO_SUCH}}", "NO_SUCH is not set"),
        ("autoscale: {perio_s: 3}", "perio_s"),
        ("autoscale: {}\nstate: {pool: other}", "state: cannot change while running"),
    ],
)
async def test_a_config_that_cannot_be_taken_changes_nothing(tmp_path: Path, text: str, why: str) -> None:
    """A secret that is missing too: the target that runs stays."""
    path = tmp_path / "r.yaml"
    path.write_text(CONFIG)
    scaler, loading = reloader(path)
    plan, target = scaler.plan, scaler._target
    path.write_text(CONFIG.partition("autoscale:")[0] + text)
    done = await loading.reload("test")
    assert not done.ok
    assert why in done.error
    assert (scaler.plan, scaler._target) == (plan, target)
    await scaler.close()
