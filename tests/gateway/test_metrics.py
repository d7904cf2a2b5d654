"""The metrics page and the demand window: what a request leaves behind in both."""

import re
from dataclasses import replace
from math import nan

import pytest

from router.core.decisions import EndState, RequestRecord
from router.core.errors import CLIENT_ERRORS, Reason
from router.core.types import EngineReport, Load, Request, Slo, Usage
from router.gateway.state import RouterView
from router.gateway.state.redis import VIEW_BYTES_MOST
from router.gateway.state.wire import view_json
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.meter import Gaps
from router.gateway.traffic.request_log import RequestLog


def account(outcome: EndState = EndState.SERVED, reason: Reason | None = None, ttft_ms: float = 500) -> RequestRecord:
    """A request that arrived at 0, was sent at 0.1, began at 0.3 and ended at 1.3 with 11 tokens."""
    request = Request("r", "tiny", 0.0, 100, slo=Slo(ttft_s=ttft_ms / 1e3), slo_class="chat")
    served = outcome is EndState.SERVED
    return RequestRecord(
        request, outcome, "b1" if served else "", 1, 0.1, 0.3 if served else nan, 1.3, Usage(11, 120, 20), reason,
        predicted_ttft_s=0.1, predicted_tpot_s=0.1, predicted_e2e_s=nan,
    )  # fmt: skip


def page(metrics: Metrics) -> str:
    """The page as text."""
    return metrics.text().decode()


def metrics() -> Metrics:
    """Books whose clock stands at 10."""
    return Metrics(lambda: 10.0)


def test_a_served_request_is_in_every_family_it_belongs_to() -> None:
    """Outcome, SLO, latency, tokens, and how far off the forecast was."""
    books = metrics()
    books.recorded(account())
    text = page(books)
    for line in (
        'headroom_requests_total{model="tiny",outcome="served",reason="",slo_class="chat"} 1.0',
        'headroom_slo_requests_total{met="true",model="tiny",slo_class="chat",source="class"} 1.0',
        'headroom_ttft_seconds_bucket{backend="b1",le="0.3",model="tiny",slo_class="chat"} 1.0',
        'headroom_ttft_seconds_bucket{backend="b1",le="0.2",model="tiny",slo_class="chat"} 0.0',
        'headroom_tpot_seconds_bucket{backend="b1",le="0.15",model="tiny",slo_class="chat"} 1.0',
        'headroom_e2e_seconds_sum{backend="b1",model="tiny",slo_class="chat"} 1.3',
        'headroom_tokens_total{backend="b1",kind="output",model="tiny"} 11.0',
        'headroom_tokens_total{backend="b1",kind="cached",model="tiny"} 20.0',
        'headroom_ttft_prediction_ratio_bucket{backend="b1",le="2.0"} 1.0',
        'headroom_tpot_prediction_ratio_bucket{backend="b1",le="0.95"} 0.0',
        'headroom_tpot_prediction_ratio_bucket{backend="b1",le="1.05"} 1.0',
    ):
        assert line in text
    assert 'headroom_e2e_prediction_ratio_count{backend="b1"} 0.0' in text  # nothing was forecast


def test_a_refusal_misses_its_slo_and_a_client_that_left_says_nothing_of_it() -> None:
    """Attainment is of those who waited for an answer."""
    books = metrics()
    books.recorded(account(EndState.REFUSED, Reason.SATURATED))
    books.recorded(account(EndState.LEFT))
    text = page(books)
    assert 'headroom_slo_requests_total{met="false",model="tiny",slo_class="chat",source="class"} 1.0' in text
    assert 'headroom_slo_requests_total{met="true",model="tiny",slo_class="chat",source="class"} 0.0' in text
    assert 'outcome="refused",reason="saturated"' in text


def served(window: DemandWindow, record: RequestRecord, at_s: float, class_slo: Slo | None = None) -> None:
    """It arrives at that time and ends."""
    times = {name: getattr(record, name) + at_s for name in ("sent_s", "first_token_s", "ended_s")}
    there = replace(record, request=replace(record.request, arrived_s=at_s), **times)
    window.arrived(there.request, at_s, there.request.slo if class_slo is None else class_slo)
    window.recorded(there, at_s, class_slo)


def test_a_clients_own_error_is_neither_refused_nor_judged() -> None:
    """No alert that pages an operator is about what a client has to change."""
    books, window = metrics(), DemandWindow()
    for reason in CLIENT_ERRORS:
        books.recorded(account(EndState.CLIENT_ERROR, reason))
        served(window, account(EndState.CLIENT_ERROR, reason), 0.0)
    text = page(books)
    assert 'outcome="client_error",reason="too-long"' in text
    assert 'outcome="refused"' not in text
    assert "headroom_slo_requests_total{" not in text
    assert window.view(0.0) == {}


def test_names_of_models_nobody_serves_make_no_new_series() -> None:
    """A client could otherwise fill the memory with labels."""
    books = metrics()
    books.recorded(account(EndState.CLIENT_ERROR, Reason.UNKNOWN_MODEL))
    assert 'model="unknown"' in page(books)
    assert 'model="tiny"' not in page(books)


def test_the_page_shows_the_fleet_as_it_is_when_asked() -> None:
    """Loads, gaps, engines, state and config are read at the scrape."""
    books, gaps, up = metrics(), Gaps(), {"b1": True}
    gaps.counts[3] += 2
    books.watch(
        lambda: (5, 2, {"b1": Load(1, 10, 3, 40)}),
        lambda: {"b1": gaps},
        dict,
        lambda: {"usage": 3, "peer": 1},
        lambda: up,
    )
    books.reported("b1", EngineReport.by_name(7.5, running=4, kv_usage=0.5))
    books.scrape_failed("b2", "gone")
    books.synced(0.003, 2)
    books.sync_failed("timeout", 1)
    books.reloaded(True, "abc", 1.7e9)
    books.reloaded(False, "", 0.0)
    text = page(books)
    for line in (
        "headroom_requests_in_flight 5.0",
        "headroom_requests_held 2.0",
        'headroom_backend_requests{backend="b1",phase="decode"} 3.0',
        'headroom_itl_seconds_bucket{backend="b1",le="0.0075"} 2.0',
        'headroom_engine_running{backend="b1"} 4.0',
        'headroom_engine_report_age_seconds{backend="b1"} 2.5',
        'headroom_backend_up{backend="b1"} 1.0',
        'headroom_engine_scrapes_total{backend="b2",result="failed"} 1.0',
        'headroom_dropped_numbers_total{source="usage"} 3.0',
        'headroom_dropped_numbers_total{source="peer"} 1.0',
        "headroom_state_up 0.0",
        "headroom_state_peers 1.0",
        'headroom_state_failures_total{reason="timeout"} 1.0',
        'headroom_state_failures_total{reason="refused"} 0.0',
        'headroom_config_reloads_total{result="failed"} 1.0',
        'headroom_config_info{version="abc"} 1.0',
    ):
        assert line in text
    assert "headroom_engine_waiting{" not in text  # it did not say
    del up["b1"]
    books.forget("b1")
    assert 'backend="b1"' not in "".join(line for line in page(books).splitlines() if "_up{" in line or "_age_" in line)


def test_the_shared_state_is_up_once_it_has_answered() -> None:
    """Not before: a router that starts without its store would seem well."""
    books = metrics()
    assert "headroom_state_up 0.0" in page(books)
    books.synced(0.003, 0)
    assert "headroom_state_up 1.0" in page(books)


def test_values_that_were_skipped_are_shown_by_kind_and_reason() -> None:
    """As the store counts them."""
    books = metrics()
    books.watch_state(lambda: {("view", "newer"): 2})
    assert 'headroom_state_skipped_values_total{kind="view",reason="newer"} 2.0' in page(books)


def test_every_name_bears_our_prefix() -> None:
    """An engine's own prefix would be summed with the engine's; or one that conventions prescribe."""
    books = metrics()
    books.ended(RequestLog(account(), "/v1/chat/completions", "w", True, 200, 0, 0.0, 0.0))
    ours = ("# ", "headroom_", "gen_ai_server_", "process_")
    assert all(line.startswith(ours) for line in page(books).splitlines())


def test_the_demand_of_a_minute_is_a_rate_with_means() -> None:
    """60 requests in 60 s: one a second; the tightest class is named; unknown models are not demand."""
    window = DemandWindow()
    for second in range(60):
        served(window, account(ttft_ms=500 if second % 2 else 100), float(second))
    served(window, account(EndState.CLIENT_ERROR, Reason.UNKNOWN_MODEL), 59.0)
    demand = window.view(60.0)["tiny"]
    assert demand.requests_per_s == pytest.approx(1.0, rel=0.05)
    assert (demand.prompt_tokens, demand.slo_class) == (account().request.prompt_tokens, "chat")
    assert demand.output_tokens == pytest.approx(account().usage.output_tokens, rel=0.5)  # it is learnt meanwhile
    assert demand.attained / demand.ended == pytest.approx(0.5, abs=0.01)


def test_a_bound_from_a_header_makes_no_class_the_tightest_and_no_attainment() -> None:
    """Replicas are sized for classes: one client's 1 ms names no class and counts as no miss."""
    window = DemandWindow()
    served(window, account(ttft_ms=500), 0.0)
    batch = account(ttft_ms=1)
    served(window, replace(batch, request=replace(batch.request, slo_class="batch")), 0.0, Slo(e2e_s=120.0))
    demand = window.view(1.0)["tiny"]
    assert (demand.slo_class, demand.ended, demand.attained) == ("chat", 1, 1)


def test_the_demand_of_any_number_of_models_fits_into_a_view() -> None:
    """While there is no backend a request for any name is demand: a view that is too large would be read by no peer."""
    window, given = DemandWindow(), account().request
    for number in range(1_000):
        window.arrived(replace(given, id=str(number), model=f"a-name-of-some-length-{number}"), 0.0, given.slo)
    assert len(view_json(RouterView(demand=window.view(7_200.0)))) < 0.6 * VIEW_BYTES_MOST


def test_demand_is_forgotten_after_its_window() -> None:
    """No request for two minutes: no demand; a quiet stretch counts in the rate."""
    window = DemandWindow()
    served(window, account(), 0.0)
    served(window, account(), 30.0)
    assert window.view(50.0)["tiny"].requests_per_s == pytest.approx(2 / 50, rel=0.1)
    assert window.view(250.0)["tiny"].requests_per_s == 0.0


def test_requests_are_counted_once_held_and_refused_ones_are_stated() -> None:
    """Arrivals and totals are of one ring: they agree whatever has ended. A refusal is demand that was not met."""
    window = DemandWindow()
    for second in range(60):
        one = account(EndState.REFUSED, Reason.SATURATED) if second % 4 == 0 else account()
        arrived = replace(one.request, id=f"r{second}", arrived_s=float(second))
        window.arrived(arrived, float(second), arrived.slo)
        if second % 2 == 0:
            window.recorded(replace(one, request=arrived), second + 0.5)
    demand = window.view(60.0, lambda model: 3 if model == "tiny" else 0)["tiny"]
    assert demand.requests_per_s == pytest.approx(sum(demand.arrivals) / (demand.bucket_s * len(demand.arrivals)))
    assert demand.requests_per_s == sum(kind.requests_per_s for kind in demand.kinds)
    assert (demand.held, demand.shed_per_s) == (3.0, pytest.approx(0.25))


def test_demand_is_shown_as_it_arrives_and_when_there_is_none_any_more() -> None:
    """What has not ended counts; a model without requests has a demand of 0, so that its replicas may go."""
    window, one = DemandWindow(), account()
    for second in range(30):
        arrived = replace(one.request, id=f"r{second}", arrived_s=float(second))
        window.arrived(arrived, float(second), arrived.slo)
    demand = window.view(30.0)["tiny"]
    assert (demand.in_flight, demand.arrivals, demand.requests_per_s) == (30.0, (5.0,) * 5, pytest.approx(1.0))
    assert demand.kinds[0].requests_per_s == pytest.approx(1.0)
    window.recorded(replace(one, request=replace(one.request, arrived_s=29.0)), 30.0)
    idle = window.view(4000.0)["tiny"]
    assert (idle.requests_per_s, idle.kinds, sum(idle.arrivals)) == (0.0, (), 0.0)


def test_a_violation_is_counted_from_0_before_there_is_one() -> None:
    """For models and classes of the config without any request too: else the first one would be in no rate."""
    books = metrics()
    books.watch_offered(lambda: [("tiny", "batch")])
    books.recorded(account(), "header")
    text = page(books)
    for line in (
        'headroom_slo_requests_total{met="true",model="tiny",slo_class="batch",source="class"} 0.0',
        'headroom_slo_requests_total{met="false",model="tiny",slo_class="batch",source="class"} 0.0',
        'headroom_slo_requests_total{met="false",model="tiny",slo_class="chat",source="header"} 0.0',
        'headroom_slo_requests_total{met="true",model="tiny",slo_class="chat",source="header"} 1.0',
    ):
        assert line in text


def test_the_page_names_the_build_and_measures_its_process() -> None:
    """As Prometheus's own clients do."""
    text = page(metrics())
    assert re.search(r'headroom_build_info{build="\w+",version="[0-9.]+"} 1.0', text)
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert re.search(rf"^{name} [0-9.e+]+$", text, re.MULTILINE)


def test_requests_are_in_the_metrics_of_the_genai_conventions() -> None:
    """Under their names in Prometheus, with their buckets; an error is in the duration alone."""
    books = metrics()
    for record in (account(), account(EndState.REFUSED, Reason.SATURATED)):
        books.ended(RequestLog(record, "/v1/chat/completions", "w", True, 200, 0, 0.0, 0.0))
    text = page(books)
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="headroom",gen_ai_request_model="tiny"'
    for line in (
        f'gen_ai_server_request_duration_seconds_bucket{{error_type="",{labels},le="1.28"}} 0.0',
        f'gen_ai_server_request_duration_seconds_bucket{{error_type="",{labels},le="2.56"}} 1.0',
        f'gen_ai_server_request_duration_seconds_count{{error_type="saturated",{labels}}} 1.0',
        f"gen_ai_server_time_to_first_token_seconds_sum{{{labels}}} 0.3",
        f"gen_ai_server_time_per_output_token_seconds_sum{{{labels}}} 0.1",
        f"gen_ai_server_time_per_output_token_seconds_count{{{labels}}} 1.0",
    ):
        assert line in text
