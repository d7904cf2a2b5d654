"""The autoscalers that the scaling policy is compared with behave as their documents say."""

from router.core.scaling import Demand
from router.core.types import Slo
from simulator.pool import Member
from tests.bench.scalers import HorizontalPodAutoscaler, Polled, SloThresholds, in_time
from tests.bench.scaling import CONTENDERS, cheapest_plan, planned, run
from tests.bench.scaling_worlds import BenchWorld
from tests.fakes import backend

SHORT = BenchWorld(
    "short",
    lambda at_s: 1.0 if at_s < 40.0 else 3.0,
    3.0,
    100.0,
    1000,
    100,
    member=Member("l4", "l4", "llama-3-8b"),
    slo=Slo(ttft_s=2.0, tpot_s=0.1),
    start_s=10.0,
    replicas_min=1,
    replicas_max=4,
)


class Signal:
    """A metric and a clock that a test sets."""

    def __init__(self) -> None:
        self.value, self.now_s, self.replicas, self.read = 0.0, 0.0, 1, 0

    def metric(self) -> float:
        """Counted."""
        self.read += 1
        return self.value

    def demand(self) -> Demand:
        """With as many replicas as there are."""
        return Demand("m", 1.0, 1.0, 1.0, Slo(), {"a": self.replicas}, {"a": backend("a")}, 1.0)

    def after(self, scaler: HorizontalPodAutoscaler, seconds: float, value: float) -> int:
        """Replicas after the next synchronisation."""
        self.now_s += seconds
        self.value = value
        (answer,) = scaler.scale(self.demand())
        self.replicas = answer.replicas
        return self.replicas


def test_an_hpa_has_a_tolerance_doubles_at_most_and_waits_five_minutes_before_it_goes_down() -> None:
    """As kubernetes.io describes it."""
    signal = Signal()
    scaler = HorizontalPodAutoscaler(signal.metric, 5.0, lambda: signal.now_s, 20)
    assert signal.after(scaler, 15.0, 5.4) == 1  # 8 % above
    assert signal.after(scaler, 15.0, 11.0) == 3
    assert signal.after(scaler, 15.0, 100.0) == 7  # four more
    assert signal.after(scaler, 15.0, 100.0) == 14  # as many again
    assert signal.after(scaler, 15.0, 100.0) == 20
    assert [signal.after(scaler, 15.0, 0.0) for _ in range(19)] == [20] * 19
    assert signal.after(scaler, 30.0, 0.0) == 1


def test_keda_reads_its_metric_once_in_half_a_minute() -> None:
    """Whatever the controller does meanwhile."""
    signal = Signal()
    polled = Polled(signal.metric, lambda: signal.now_s)
    for _ in range(8):
        polled()
        signal.now_s += 15.0
    assert signal.read == 4


def test_a_plan_has_its_replicas_before_they_are_needed() -> None:
    """By as long as one takes to start."""
    count = in_time(lambda at_s: 1.0 if at_s < 100.0 else 4.0, 1.0, 20.0, 1, 8)
    assert [count(at_s) for at_s in (0.0, 79.0, 80.0, 100.0)] == [1, 1, 4, 4]


def test_each_scaler_plays_a_world_and_the_plan_is_the_cheapest_that_attains() -> None:
    """Replicas within their bounds; nothing raises; a static pool of too many costs more than the plan."""
    found = {name: run(SHORT, who, 0)[0] for name, who in CONTENDERS.items()}
    for each in found.values():
        assert 0.0 < each.attained <= 1.0
        assert 1.0 <= each.replicas <= 4.0
    per_replica = cheapest_plan(SHORT, 0)
    plan = run(SHORT, planned(per_replica), 0)[0]
    assert plan.attained >= SHORT.goal
    assert plan.replicas < 4.0
    assert run(SHORT, planned(per_replica, instant=True), 0)[0].replicas < plan.replicas


def test_thresholds_leave_replicas_alone_between_them() -> None:
    """0.40 to 0.55 of the SLO; what starts counts as there."""

    class Uses:
        def __init__(self) -> None:
            self.use = 0.5

        def slo_use(self, _: Slo) -> float:
            return self.use

        def ready(self) -> int:
            return 4

    uses, signal = Uses(), Signal()
    signal.replicas = 4
    scaler = SloThresholds(uses, Slo(1.0, 1.0), 8)  # type: ignore[arg-type]
    wanted = []
    for uses.use in (0.5, 0.9, 0.1):
        wanted.append(scaler.scale(signal.demand())[0].replicas)
    assert wanted == [4, 7, 1]
    signal.replicas = 7  # three of them start
    uses.use = 0.9
    assert scaler.scale(signal.demand())[0].replicas == 7
