"""Events of Service, slices and pods in any order: what is found in the end, and what is never left out in between."""

import asyncio
from contextlib import aclosing
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.kubernetes import followed
from router.gateway.sources.pods import Wanted
from tests.kubernetes.cluster import Cluster, ClusterClient
from tests.virtual_time import VirtualTimeLoop

KINDS = ("Service", "EndpointSlice", "Pod")
HTTP = Wanted(None, "http")
QUIET_S = 1.0  # longer than every pause between two requests
Place = tuple[str, str]  # a pod's name and uid

names, colours, kinds = st.sampled_from("abcd"), st.sampled_from(("blue", "green")), st.sampled_from(KINDS)
actions = st.one_of(
    st.tuples(st.just("start"), names, colours),
    st.tuples(st.just("probe"), names, st.booleans()),
    st.tuples(st.just("relabel"), names, colours),
    st.tuples(st.just("delete"), names, st.booleans()),
    st.tuples(st.just("select"), colours),
    st.tuples(st.just("reconcile")),
    st.tuples(st.just("expire")),
    st.tuples(st.just("deliver"), kinds),
    st.tuples(st.just("deliver"), kinds),
)


class World:
    """A Service, its controller and its pods; what a router sees of them comes late, each kind by itself."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.pods: dict[str, dict[str, Any]] = {}
        self.colour = "blue"
        self.slices: dict[str, list[dict[str, Any]]] = {}
        self.started = 0
        self.select("blue")
        for name in "ab":
            self.start(name, "blue")
            self.probe(name, True)
        self.reconcile()
        self.cluster.delay(*KINDS)

    def start(self, name: str, colour: str) -> None:
        """A new pod, not ready yet."""
        if name in self.pods:
            return
        self.started += 1
        ports = [{"name": "http", "containerPort": 8000}]
        self.pods[name] = {
            "metadata": {"name": name, "uid": f"uid-{self.started}", "labels": {"colour": colour}},
            "spec": {"containers": [{"ports": ports}]},
            "status": {"podIP": f"10.0.0.{self.started}"},
        }
        self.probe(name, False)

    def probe(self, name: str, ready: bool) -> None:
        """It becomes ready or is so no longer."""
        if name in self.pods:
            condition = {"type": "Ready", "status": "True" if ready else "False"}
            self.pods[name]["status"]["conditions"] = [condition]
            self.cluster.put("Pod", self.pods[name])

    def relabel(self, name: str, colour: str) -> None:
        """Another selector matches it from now on."""
        if name in self.pods:
            self.pods[name]["metadata"]["labels"] = {"colour": colour}
            self.cluster.put("Pod", self.pods[name])

    def delete(self, name: str, gone: bool) -> None:
        """It is to end, or it is gone."""
        if name not in self.pods:
            return
        if gone:
            self.cluster.remove("Pod", name)
            del self.pods[name]
        else:
            self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self.cluster.put("Pod", self.pods[name])

    def select(self, colour: str) -> None:
        """The Service has these pods from now on."""
        self.colour = colour
        self.cluster.put("Service", {"metadata": {"name": "vllm"}, "spec": {"selector": {"colour": colour}}})

    def reconcile(self) -> None:
        """The controller writes the slices that differ; two of them share the pods."""
        for name in ("slice-1", "slice-2"):
            endpoints = [
                _endpoint(pod)
                for pod in self.pods.values()
                if pod["metadata"]["labels"]["colour"] == self.colour and _slice(pod) == name
            ]
            if endpoints != self.slices.get(name):
                self.slices[name] = endpoints
                ports = [{"name": "http", "port": 8000}]
                metadata = {"name": name, "labels": {"kubernetes.io/service-name": "vllm"}}
                given = {"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}
                self.cluster.put("EndpointSlice", given)

    def deliver(self, kind: str) -> None:
        """The router gets an event, if there is one."""
        if self.cluster.waiting(kind):
            self.cluster.deliver(kind)

    def expire(self) -> None:
        """The server forgets what was: all is listed again."""
        self.cluster.forget()
        self.cluster.look()

    def ready(self) -> set[Place]:
        """The pods that are there and ready in the slices that the router has."""
        there = {pod["metadata"]["uid"] for pod in self.pods.values() if "deletionTimestamp" not in pod["metadata"]}
        return {
            (each["targetRef"]["name"], each["targetRef"]["uid"])
            for given in self.cluster.as_delivered("EndpointSlice").values()
            for each in given["endpoints"]
            if each["conditions"]["ready"] and each["targetRef"]["uid"] in there
        }


def _slice(pod: dict[str, Any]) -> str:
    return "slice-1" if pod["metadata"]["name"] in "ac" else "slice-2"


def _endpoint(pod: dict[str, Any]) -> dict[str, Any]:
    ends = "deletionTimestamp" in pod["metadata"]
    ready = pod["status"]["conditions"][0]["status"] == "True" and not ends
    target = {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    conditions = {"ready": ready, "serving": ready, "terminating": ends}
    return {"addresses": [pod["status"]["podIP"]], "conditions": conditions, "targetRef": target}


Sets = list[tuple[Endpoint, ...]]


async def follow(cluster: Cluster, sets: Sets) -> None:
    following = followed(ClusterClient(cluster), "models", "vllm", HTTP, asyncio.get_running_loop().time)
    async with aclosing(following):
        async for endpoints in following:
            sets.append(endpoints)


async def fresh(cluster: Cluster) -> tuple[Endpoint, ...]:
    """What a router finds that starts now."""
    async with aclosing(followed(ClusterClient(cluster), "models", "vllm", HTTP)) as following:
        return await anext(following)


def serving(endpoints: tuple[Endpoint, ...]) -> set[str]:
    return {each.name for each in endpoints if not each.terminating}


async def check(history: list[tuple[Any, ...]]) -> None:
    world, sets = World(), Sets()
    following = asyncio.create_task(follow(world.cluster, sets))
    await asyncio.sleep(QUIET_S)
    assert [serving(each) for each in sets] == [{"a", "b"}]
    rest = [("reconcile",), *(("deliver", kind) for kind in KINDS for _ in range(2 * len(history) + 2))]
    for what, *how in [*history, *rest]:
        if what == "deliver" and not world.cluster.waiting(*how):
            continue
        before, seen = world.ready(), len(sets)
        getattr(world, what)(*how)
        await asyncio.sleep(QUIET_S)
        if what == "expire":
            world.cluster.delay(*KINDS)  # what was listed has been delivered
        stays = {name for name, _ in before & world.ready()}
        for between in sets[seen:]:
            assert stays <= serving(between), (what, how)
        assert {name for name, _ in world.ready()} <= serving(sets[-1]), (what, how)
    assert not following.done()
    following.cancel()
    assert sets[-1] == await fresh(world.cluster)


def run(history: list[tuple[Any, ...]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(check(history))


@settings(max_examples=40, deadline=None)
@given(st.lists(actions, max_size=25))
def test_every_order_of_events_ends_where_a_list_does_and_leaves_nothing_out_that_is_ready(
    history: list[tuple[Any, ...]],
) -> None:
    """An endpoint that is ready in the slices before and after an event is in every set meanwhile."""
    run(history)


def test_slices_of_a_new_selector_may_come_before_all_else() -> None:
    """The new pods are in no watch yet, and the old ones are in no slice any more."""
    green = [("start", "c", "green"), ("probe", "c", True), ("start", "d", "green"), ("probe", "d", True)]
    run([*green, ("select", "green"), ("reconcile",), ("deliver", "EndpointSlice"), ("deliver", "EndpointSlice")])
    run([*green, ("select", "green"), ("reconcile",), ("deliver", "Service"), ("deliver", "EndpointSlice")])
