"""Backends from Kubernetes: what the API's objects mean, and a router that follows them over real sockets."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.config.discover import KubernetesSource
from router.config.settings import BackendDefaults
from router.core.errors import ConfigError, SourceFailed
from router.gateway.config.plan import plan_file
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.facts import backend_of
from router.gateway.sources.kubernetes import PodsOfSelector, PodsOfService
from router.gateway.sources.merging import Given, Merging
from router.gateway.sources.pods import PodRef, Wanted, of_pods, of_slices
from tests.fakes_engine import WholeEngine
from tests.fakes_router import Router, router, write
from tests.fakes_wire import LAST, STREAM_HEAD, chunked, event, token
from tests.kubernetes.watched_api import WatchedApi
from tests.waiting import until

HTTP = Wanted(None, "http")


def pod(name: str, ready: bool = True, ip: str = "10.0.0.1", port: int = 8000, **metadata: Any) -> dict[str, Any]:
    """A pod as a Deployment makes it."""
    labels = {"app": "vllm", "pod-template-hash": "5d4"} | metadata.pop("labels", {})
    return {
        "metadata": {"name": name, "labels": labels, **metadata},
        "spec": {"containers": [{"name": "vllm", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }  # fmt: skip


def endpoint(name: str, ip: str = "10.0.0.1", **conditions: bool) -> dict[str, Any]:
    conditions = {"ready": True, "serving": True, "terminating": False} | conditions
    target = {"kind": "Pod", "namespace": "models", "name": name}
    return {"addresses": [ip], "conditions": conditions, "targetRef": target, "zone": "eu-1a", "nodeName": "n1"}


def slice_of(
    *endpoints: dict[str, Any], name: str = "vllm-x", port: int = 8000, family: str = "IPv4"
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "vllm"}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }


def named(*pods: dict[str, Any]) -> Mapping[PodRef, Any]:
    return {PodRef(each["metadata"]["name"]): each for each in pods}


def urls(found: tuple[Endpoint, ...]) -> dict[str, str]:
    """By name; an endpoint that ends soon has none."""
    return {each.name: "" if each.terminating else each.url for each in found}


def test_facts_are_the_labels_and_annotations_of_their_own() -> None:
    """A pod's label ``model`` is somebody else's word; what a label cannot hold is an annotation."""
    notes = {"headroom/models": "meta-llama/Llama-3.1-8B,chat=meta-llama/Llama-3.1-8B", "other": "x"}
    labels = {"headroom/card": "h100", "headroom/tp": "2", "model": "whatever", "team": "a"}
    (found,) = of_slices([slice_of(endpoint("a"))], named(pod("a", labels=labels, annotations=notes)), HTTP)
    assert found == Endpoint(
        "a",
        "http://10.0.0.1:8000",
        {
            "zone": "eu-1a", "app": "vllm", "pod-template-hash": "5d4", "team": "a", "card": "h100", "tp": "2",
            "models": notes["headroom/models"],
        },
    )  # fmt: skip


def test_a_label_that_is_nearly_a_fact_is_named_with_its_pod(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typing error in a name, like a wrong value, is in the log; a name of somebody's own is a label."""
    labels = {"headroom/crad": "h100", "headroom/tp": "two", "headroom/team": "a"}
    found = of_slices([slice_of(endpoint("vllm-0"))], named(pod("vllm-0", labels=labels)), HTTP)
    backend, faults = backend_of(found[0], BackendDefaults())
    assert backend is not None
    assert backend.labels["team"] == "a"
    assert faults[0] == "headroom/crad: there is no such fact; did you mean 'card'?"
    write(tmp_path / "r.yaml", "discover: [{kubernetes: {service: vllm, url: 'http://127.0.0.1:1'}}]")
    plan = plan_file(tmp_path / "r.yaml")
    Merging().merged(plan, [Given(plan.settings.discover[0], plan.accesses[0], found)])
    assert f"endpoint vllm-0: label ignored: {faults[0]}" in caplog.text
    assert "endpoint vllm-0: label ignored: tp: input should be a valid integer" in caplog.text


def test_a_pod_that_ends_is_terminating_by_either_word() -> None:
    """Its slice says so, or the pod itself does before the slice has followed."""
    slices = [slice_of(endpoint("a", terminating=True, ready=False), endpoint("b"), endpoint("c"))]
    pods = named(pod("a"), pod("b", deletionTimestamp="2026-01-01T00:00:00Z"), pod("c"))
    assert urls(of_slices(slices, pods, HTTP)) == {"a": "", "b": "", "c": "http://10.0.0.1:8000"}


def test_pods_that_are_not_ready_count_only_where_none_is() -> None:
    """Probes that fail together, as of a pool under load, do not take all of it away: health checks decide."""
    a, b = endpoint("a"), endpoint("b", ready=False)
    pods = named(pod("a"), pod("b"))
    assert set(urls(of_slices([slice_of(a, b)], pods, HTTP))) == {"a"}
    assert set(urls(of_slices([slice_of(endpoint("a", ready=False), b)], pods, HTTP))) == {"a", "b"}
    assert set(urls(of_slices([slice_of({"addresses": ["10.0.0.1"]})], {}, HTTP))) == {"10.0.0.1-8000"}


def test_a_pod_is_one_backend_in_however_many_slices() -> None:
    """Of both families, and while it moves from one slice to another."""
    v6 = slice_of(endpoint("a", "fd00::1"), name="v6", family="IPv6")
    pods = named(pod("a"))
    assert urls(of_slices([v6, slice_of(endpoint("a"))], pods, HTTP)) == {"a": "http://10.0.0.1:8000"}
    assert urls(of_slices([v6], pods, HTTP)) == {"a": "http://[fd00::1]:8000"}
    twice = [slice_of(endpoint("a", ready=False)), slice_of(endpoint("a"), name="new")]
    assert urls(of_slices(twice, pods, HTTP)) == {"a": "http://10.0.0.1:8000"}
    assert of_slices([slice_of(endpoint("a"), family="FQDN")], pods, HTTP) == ()


def test_a_pod_of_both_families_keeps_its_address_whichever_slice_is_written_first() -> None:
    """It is ready by either, for it is one pod; two addresses in turn would be two backends in turn."""
    pods = named(pod("a"), pod("b"))
    v4, v6 = endpoint("a", ready=False), endpoint("a", "fd00::1")
    both = [slice_of(v6, name="v6", family="IPv6"), slice_of(v4, endpoint("b", "10.0.0.2"))]
    assert urls(of_slices(both, pods, HTTP)) == {"a": "http://10.0.0.1:8000", "b": "http://10.0.0.2:8000"}
    ends = [slice_of(endpoint("a", "fd00::1", terminating=True), name="v6", family="IPv6"), slice_of(endpoint("a"))]
    assert urls(of_slices(ends, pods, HTTP)) == {"a": "http://10.0.0.1:8000"}


def test_the_order_of_slices_decides_nothing() -> None:
    """What came last by a watch comes first by a list."""
    one, other = slice_of(endpoint("a") | {"zone": "x"}, name="1"), slice_of(endpoint("a") | {"zone": "y"}, name="2")
    assert of_slices([one, other], named(pod("a")), HTTP) == of_slices([other, one], named(pod("a")), HTTP)


@pytest.mark.parametrize(("wanted", "expected"), [(None, 8000), ("http", 8000), ("metrics", 9000), (7, 7)])
def test_the_port_is_found_by_number_or_name(wanted: int | str | None, expected: int) -> None:
    """Of several the one named http, unless another is wanted."""
    given = slice_of(endpoint("a"))
    given["ports"].append({"name": "metrics", "port": 9000})
    found = of_slices([given], named(pod("a")), Wanted(wanted, "https", ".models"))
    assert urls(found) == {"a.models": f"https://10.0.0.1:{expected}"}


def test_a_port_that_nothing_has_is_a_failure_and_no_empty_set() -> None:
    """It names those that there are; the backends of before stay."""
    given = slice_of(endpoint("a")) | {"ports": [{"name": "api", "port": 8000}, {"name": "metrics", "port": 9000}]}
    pods = named(pod("a"))
    with pytest.raises(SourceFailed, match=r"no port is named http: give .*; there are api \(8000\), metrics \(9000\)"):
        of_slices([given], pods, HTTP)
    with pytest.raises(SourceFailed, match=r"no port is named x; there are http \(8000\)"):
        of_pods([pod("a")], Wanted("x", "http"))
    with pytest.raises(SourceFailed, match="there are none"):
        of_slices([slice_of(endpoint("a")) | {"ports": None}], pods, HTTP)
    assert of_slices([slice_of() | {"endpoints": None, "ports": None}], pods, HTTP) == ()  # scaled to none
    assert of_slices([slice_of(endpoint("a", terminating=True)) | {"ports": None}], pods, HTTP) == ()


def test_only_tcp_ports_count() -> None:
    """QUIC beside HTTP is not a second one."""
    given = slice_of(endpoint("a"))
    given["ports"] = [{"name": "quic", "port": 8000, "protocol": "UDP"}, {"name": "api", "port": 8001}]
    assert urls(of_slices([given], named(pod("a")), HTTP)) == {"a": "http://10.0.0.1:8001"}


def test_pods_alone_need_no_service() -> None:
    """By their own address and condition; those that have ended or have no address yet are none."""
    done, unplaced = pod("done"), pod("unplaced")
    done["status"]["phase"], unplaced["status"] = "Failed", {"phase": "Pending"}
    pods = [pod("a"), pod("b", ready=False), pod("c", deletionTimestamp="now"), done, unplaced]
    assert urls(of_pods(pods, HTTP)) == {"a": "http://10.0.0.1:8000", "c": ""}


@pytest.mark.parametrize("bad", [None, 7, "x", [], [7], {"a": 7}, True])
def test_objects_of_another_form_are_left_out(bad: Any) -> None:
    """At every place, whatever the server or a webhook made of it."""
    good, pods = slice_of(endpoint("b")), named(pod("a"), pod("b"))
    for key in ("endpoints", "ports", "addressType", "metadata"):
        assert "b" in urls(of_slices([slice_of(endpoint("a")) | {key: bad}, good], pods, HTTP))
    for key in ("addresses", "conditions", "targetRef", "zone"):
        assert "b" in urls(of_slices([slice_of(endpoint("a") | {key: bad}, endpoint("b"))], pods, HTTP))
    for key in ("metadata", "spec", "status"):
        assert "b" in urls(of_pods([pod("a") | {key: bad}, pod("b")], HTTP))
        assert "b" in urls(of_slices([slice_of(endpoint("a")), good], {**pods, PodRef("a"): {key: bad}}, HTTP))


def config(api: WatchedApi, more: str = "service: vllm") -> str:
    head = "listen: {port: 0, drain_s: 5}\nscrape: {period_s: 0.02, models_s: null}\ndiscover:\n"
    return head + f"  - kubernetes: {{{more}, url: '{api.url}', namespace: models}}\n"


def start(api: WatchedApi, name: str, engine: WholeEngine) -> None:
    """A pod has become ready."""
    api.put("Pod", pod(name, ip="127.0.0.1", port=engine.port, labels={"headroom/card": "l4"}))
    api.put("EndpointSlice", slice_of(endpoint(name, "127.0.0.1"), name=f"slice-{name}", port=engine.port))


def service(api: WatchedApi) -> None:
    api.put("Service", {"metadata": {"name": "vllm"}, "spec": {"selector": {"app": "vllm"}}})


async def up(it: Router, *wanted: str) -> None:
    """Wait until exactly these are backends and up."""
    await until(lambda: {backend.name for backend in it.gateway.plan.backends} == set(wanted))
    await until(lambda: [watch.up for watch in it.gateway.engines.watches.values()] == [True] * len(wanted))


async def test_pods_come_and_one_that_ends_is_drained_at_once(tmp_path: Path) -> None:
    """No request goes to a pod that is being deleted, and the stream that runs there ends whole."""
    rest = asyncio.Event()
    begun = [STREAM_HEAD + chunked(event(token(" first"))), rest, chunked(event(token(" last")), event("[DONE]")), LAST]
    async with WholeEngine(begun) as a, WholeEngine() as b, WatchedApi() as api:
        service(api)
        start(api, "a", a)
        async with router(tmp_path / "r.yaml", config(api)) as it:
            await up(it, "a.models")
            assert it.gateway.plan.backends[0].labels["card"] == "l4"
            open_one = asyncio.create_task(it.chat())
            await until(lambda: a.requests)
            start(api, "b", b)
            await up(it, "a.models", "b.models")
            ending = pod("a", ip="127.0.0.1", port=a.port, deletionTimestamp="2026-01-01T00:00:00Z")
            api.put("Pod", ending)
            await up(it, "b.models")
            answers = [await it.chat() for _ in range(3)]
            assert {each.headers["x-headroom-backend"] for each in answers} == {"b.models"}
            (shown,) = (await it.get("/admin/discovery")).json()["sources"]
            assert [(e["name"], e["state"]) for e in shown["endpoints"]] == [
                ("a.models", "draining"), ("b.models", "serving"),
            ]  # fmt: skip
            rest.set()
            assert (await open_one).text.endswith("data: [DONE]\n\n")
            api.remove("EndpointSlice", "slice-a")
            api.remove("Pod", "a")
            await until(lambda: set(it.gateway.driver.upstreams) == {"b.models"})


async def test_a_lost_api_server_takes_nothing_away_and_is_listed_again_when_it_is_back(tmp_path: Path) -> None:
    """Also what was deleted meanwhile is found."""
    async with WholeEngine() as a, WholeEngine() as b, WatchedApi() as api:
        service(api)
        start(api, "a", a)
        start(api, "b", b)
        async with router(tmp_path / "r.yaml", config(api)) as it:
            await up(it, "a.models", "b.models")
            await until(lambda: api.watches == 3)
            await api.stop()
            (state,) = it.gateway.sources.states
            await until(lambda: state.failing_s is not None)
            assert (await it.chat()).status_code == 200
            api.remove("EndpointSlice", "slice-a")
            await api.start()
            await up(it, "b.models")
            assert state.failing_s is None


async def test_a_switch_of_the_selector_leaves_no_moment_without_a_backend(tmp_path: Path) -> None:
    """Blue to green: the new pods are known when the slices name them, and those of before drain."""
    async with WholeEngine() as a, WholeEngine() as b, WatchedApi() as api:
        service(api)
        start(api, "a", a)
        async with router(tmp_path / "r.yaml", config(api)) as it:
            await up(it, "a.models")
            sets: list[set[str]] = []
            take = it.gateway.sources._on_changed

            async def noted() -> None:
                sets.append({each.name for each in it.gateway.sources.states[0].endpoints})
                await take()

            it.gateway.sources._on_changed = noted
            api.put("Pod", pod("b", ip="127.0.0.1", port=b.port, labels={"app": "green", "headroom/card": "l4"}))
            api.put("Service", {"metadata": {"name": "vllm"}, "spec": {"selector": {"app": "green"}}})
            api.put("EndpointSlice", slice_of(endpoint("b", "127.0.0.1"), name="slice-a", port=b.port))
            await up(it, "b.models")
            assert it.gateway.plan.backends[0].labels["card"] == "l4"
            assert sets == [{"b.models"}]


async def test_a_service_that_is_gone_takes_nothing_away(tmp_path: Path) -> None:
    """As while a release is installed anew."""
    async with WholeEngine() as a, WatchedApi() as api:
        service(api)
        start(api, "a", a)
        async with router(tmp_path / "r.yaml", config(api)) as it:
            await up(it, "a.models")
            api.remove("Service", "vllm")
            (state,) = it.gateway.sources.states
            await until(lambda: state.failing_s is not None)
            assert state.why == "there is no Service vllm in namespace models"
            assert (await it.chat()).status_code == 200
            service(api)
            await until(lambda: state.failing_s is None)


async def first(source: PodsOfService | PodsOfSelector) -> tuple[Endpoint, ...]:
    sets = source.sets()
    try:
        return await anext(sets)
    finally:
        await sets.aclose()


async def test_a_selector_reads_pods_alone() -> None:
    """For engines without a Service; nothing else is read."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a"))
        api.put("Pod", pod("z", labels={"app": "other"}))
        given = KubernetesSource(selector="app=vllm", url=api.url, namespace="models")
        assert urls(await first(PodsOfSelector(given))) == {"a.models": "http://10.0.0.1:8000"}
        assert not [path for path in api.log if "/pods" not in path]


async def test_a_pod_that_no_selector_matches_is_read_by_itself() -> None:
    """Of a slice that somebody else writes; a right that is missing is stated, and no endpoint left out for it."""
    async with WatchedApi() as api:
        api.put("Service", {"metadata": {"name": "vllm"}, "spec": {}})
        api.put("Pod", pod("a", labels={"headroom/card": "l4"}))
        api.put("EndpointSlice", slice_of(endpoint("a"), endpoint("gone", "10.0.0.9")))
        given = KubernetesSource(service="vllm", url=api.url, namespace="models")
        (found,) = await first(PodsOfService(given))
        assert (found.name, found.labels["card"]) == ("a.models", "l4")
        assert not [path for path in api.log if "/pods?" in path]
        api.forbidden = {"get pods"}
        with pytest.raises(SourceFailed, match=r"403 forbidden: cannot get .*/pods/"):
            await first(PodsOfService(given))


async def test_what_cannot_be_read_says_what_is_missing(tmp_path: Path) -> None:
    """A right, the Service, the pod around this process, its token."""
    async with WatchedApi() as api:
        given = KubernetesSource(service="vllm", url=api.url, namespace="models")
        with pytest.raises(SourceFailed, match="there is no Service vllm in namespace models"):
            await first(PodsOfService(given))
        service(api)
        api.forbidden = {"endpointslices"}
        with pytest.raises(SourceFailed, match=r"403 forbidden: cannot list .*endpointslices"):
            await first(PodsOfService(given))
        with pytest.raises(SourceFailed, match="KUBERNETES_SERVICE_HOST is not set"):
            await first(PodsOfService(KubernetesSource(service="vllm"), {}))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{}", "discover[0].kubernetes: give exactly one of service, selector"),
        ("{service: a, selector: b}", "discover[0].kubernetes: give exactly one of service, selector"),
        ("{service: a, port: 0}", "discover[0].kubernetes.port"),
        ("{service: a, url: nonsense}", "discover[0].kubernetes.url: "),
    ],
)
def test_a_fault_of_a_kubernetes_source_is_placed(tmp_path: Path, given: str, fault: str) -> None:
    """Like any other of the config."""
    (tmp_path / "r.yaml").write_text(f"discover: [{{kubernetes: {given}}}]")
    with pytest.raises(ConfigError) as refused:
        plan_file(tmp_path / "r.yaml")
    assert fault in str(refused.value)
