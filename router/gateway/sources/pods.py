"""Objects of the Kubernetes API as endpoints: the slices of a Service with its pods, or pods alone.

Labels and annotations ``headroom/NAME`` are facts (``headroom/card: h100``); a pod's other labels are labels of the
backend. Pure: must not depend on how the objects are read. An object of another form than the API's is left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from router.core.errors import SourceFailed
from router.gateway.sources.endpoint import Endpoint, name_of
from router.gateway.sources.facts import FACTS, PREFIX, meant
from router.urls import host_port

_FAMILIES: Final = ("IPv4", "IPv6")  # of slices, in order of preference; those of names are for no pods
_PORTS_SHOWN: Final = 10

Object = Mapping[str, Any]
_Ports = list[tuple[str, int]]  # names, which may be empty, with numbers


@dataclass(frozen=True, slots=True)
class Wanted:
    """``port``: the number or the name of a port, None: the only one, or the one named http; ``suffix``: of names."""

    port: int | str | None
    scheme: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class PodRef:
    """The pod that an endpoint of a slice is of. ``uid``: empty where the slice has none."""

    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """An endpoint that is taken if it is ready, or if none is."""

    endpoint: Endpoint
    ready: bool


def named(slices: Iterable[Object]) -> frozenset[PodRef]:
    """The pods without which no set can be made: those of endpoints that do not end."""
    refs = (_pod_ref(each) for given in _of_families(slices) for each in _items(given, "endpoints") if not _ends(each))
    return frozenset(ref for ref in refs if ref is not None)


def find(pods: Mapping[str, Object], ref: PodRef) -> Object | None:
    """That pod among *pods*, which are by name; None where another one has its name."""
    pod = pods.get(ref.name)
    uid = _text(_part(pod, "metadata"), "uid") if pod is not None else ""
    return None if uid and ref.uid and uid != ref.uid else pod


def of_slices(slices: Iterable[Object], pods: Mapping[PodRef, Object], wanted: Wanted) -> tuple[Endpoint, ...]:
    """The endpoints of a Service. One of a pod that is not among *pods* is left out: there is none any more.

    Raises SourceFailed where there are endpoints, and none has a port that is wanted.
    """
    found: dict[str, _Place] = {}
    missing: set[str] = set()
    for each in _of_families(slices):
        ports = _slice_ports(each)
        port = _chosen(ports, wanted.port)
        for given in _items(each, "endpoints"):
            if port is not None:
                _keep(found, _of_slice(given, port, pods, wanted))
            elif not _ends(given):
                missing.update(_shown(ports))
    return _members(found, missing, wanted)


def of_pods(pods: Iterable[Object], wanted: Wanted) -> tuple[Endpoint, ...]:
    """The endpoints of pods without a Service. Raises SourceFailed where there are pods, and none has a wanted port."""
    found: dict[str, _Place] = {}
    missing: set[str] = set()
    for pod in pods:
        address, ports = _text(_part(pod, "status"), "podIP"), _pod_ports(pod)
        if not address or _has_ended(pod):
            continue
        port = _chosen(ports, wanted.port)
        if port is not None:
            name = _text(_part(pod, "metadata"), "name")
            _keep(found, _place(name, address, port, pod, wanted, ready=_is_ready(pod)))
        elif not _is_deleted(pod):
            missing.update(_shown(ports))
    return _members(found, missing, wanted)


def _of_families(slices: Iterable[Object]) -> list[Object]:
    """The slices of addresses, those of the preferred family first, each family's by name: whichever came last."""
    given = sorted(slices, key=lambda each: _text(_part(each, "metadata"), "name"))
    return [each for family in _FAMILIES for each in given if _text(each, "addressType") == family]


def _members(found: Mapping[str, _Place], missing: set[str], wanted: Wanted) -> tuple[Endpoint, ...]:
    """Those that are ready, and those that end; where none is ready, also those that are not: health checks decide.

    *missing*: the ports of those that have none that is wanted. Raises SourceFailed where all are such.
    """
    if missing and not found:
        raise SourceFailed(f"{_want(wanted.port)}; there are {', '.join(sorted(missing)[:_PORTS_SHOWN])}")
    listed = sorted(found.values(), key=lambda each: each.endpoint.name)
    some = any(each.ready and not each.endpoint.terminating for each in listed)
    return tuple(each.endpoint for each in listed if each.ready or each.endpoint.terminating or not some)


def _keep(found: dict[str, _Place], new: _Place | None) -> None:
    """Of one pod in several slices, as while it moves between them or has addresses of both families, one.

    It is ready where any slice has it so, and ends where all have. Its address is that of the preferred family,
    whichever slice was written last: a backend whose address changes to and fro is another backend each time.
    """
    if new is None:
        return
    known = found.setdefault(new.endpoint.name, new)
    if known is new:
        return
    better = _rank(new) > _rank(known) and _is_v6(known) == _is_v6(new)
    first = new if better else known
    ends = known.endpoint.terminating and new.endpoint.terminating
    ready = any(each.ready and not each.endpoint.terminating for each in (known, new))
    found[new.endpoint.name] = _Place(replace(first.endpoint, terminating=ends), ready)


def _rank(place: _Place) -> tuple[bool, bool]:
    return (not place.endpoint.terminating, place.ready)


def _is_v6(place: _Place) -> bool:
    return "//[" in place.endpoint.url


def _of_slice(given: Object, port: int, pods: Mapping[PodRef, Object], wanted: Wanted) -> _Place | None:
    address = next((each for each in _list(given, "addresses") if isinstance(each, str)), "")
    ends, ref = _ends(given), _pod_ref(given)
    pod: Object = {}
    name = name_of(f"{address}-{port}")
    if ref is not None:
        if ref not in pods and not ends:
            return None
        name, pod = ref.name, pods.get(ref, {})
    if not address:
        return None
    ready = _part(given, "conditions").get("ready") is not False  # left out means that it is
    zone = _text(given, "zone")
    return _place(name, address, port, pod, wanted, ready=ready, ends=ends, more={"zone": zone} if zone else {})


def _pod_ref(given: Object) -> PodRef | None:
    """The pod of an endpoint; None for one that is of none."""
    target = _part(given, "targetRef")
    name = _text(target, "name")
    return PodRef(name, _text(target, "uid")) if name and _text(target, "kind") == "Pod" else None


def _ends(given: Object) -> bool:
    return _part(given, "conditions").get("terminating") is True


def _place(
    name: str,
    address: str,
    port: int,
    pod: Object,
    wanted: Wanted,
    *,
    ready: bool,
    ends: bool = False,
    more: Mapping[str, str] | None = None,
) -> _Place:
    metadata = _part(pod, "metadata")
    terminating = ends or _is_deleted(pod)
    labels = {**(more or {}), **_labels(metadata)}
    url = f"{wanted.scheme}://{host_port(address, port)}"
    return _Place(Endpoint(f"{name}{wanted.suffix}", url, labels, terminating), ready)


def _labels(metadata: Object) -> dict[str, str]:
    """A pod's own labels, and its facts by their names without the prefix, which one that is misspelt keeps; what is no
    text is left out.
    """
    own = {key: value for key, value in _part(metadata, "labels").items() if isinstance(value, str)}
    notes = {key: value for key, value in _part(metadata, "annotations").items() if isinstance(value, str)}
    facts = {_fact_name(key): value for key, value in {**notes, **own}.items() if key.startswith(PREFIX) and value}
    return {key: value for key, value in own.items() if key not in FACTS and not key.startswith(PREFIX)} | facts


def _fact_name(label: str) -> str:
    name = label.removeprefix(PREFIX)
    return label if name not in FACTS and meant(name) else name


def _slice_ports(given: Object) -> _Ports:
    return _tcp((each, each.get("port")) for each in _items(given, "ports"))


def _pod_ports(pod: Object) -> _Ports:
    containers = _items(_part(pod, "spec"), "containers")
    ports = (port for container in containers for port in _items(container, "ports"))
    return _tcp((each, each.get("containerPort")) for each in ports)


def _tcp(ports: Iterable[tuple[Object, Any]]) -> _Ports:
    """Those that HTTP can be at; TCP is what a port is that does not state its protocol."""
    return [
        (_text(each, "name"), port)
        for each, port in ports
        if isinstance(port, int) and not isinstance(port, bool) and (_text(each, "protocol") or "TCP") == "TCP"
    ]


def _chosen(ports: _Ports, wanted: int | str | None) -> int | None:
    """The port of that number or name; without one, the only port, or the one named http."""
    if isinstance(wanted, int):
        return wanted
    if wanted is None and len(ports) == 1:
        return ports[0][1]
    return next((port for name, port in ports if name == (wanted or "http")), None)


def _shown(ports: _Ports) -> list[str]:
    return [f"{name} ({port})" if name else str(port) for name, port in ports] or ["none"]


def _want(port: int | str | None) -> str:
    return "no port is named http: give its name or number as port" if port is None else f"no port is named {port}"


def _is_ready(pod: Object) -> bool:
    conditions = _items(_part(pod, "status"), "conditions")
    return any(_text(each, "type") == "Ready" and _text(each, "status") == "True" for each in conditions)


def _is_deleted(pod: Object) -> bool:
    return _part(pod, "metadata").get("deletionTimestamp") is not None


def _has_ended(pod: Object) -> bool:
    return _text(_part(pod, "status"), "phase") in {"Succeeded", "Failed"}


def _part(given: Object, key: str) -> Object:
    """A mapping in a mapping; an empty one where there is none."""
    found = given.get(key)
    return found if isinstance(found, dict) else {}


def _text(given: Object, key: str) -> str:
    found = given.get(key)
    return found if isinstance(found, str) else ""


def _list(given: Object, key: str) -> list[Any]:
    found = given.get(key)
    return found if isinstance(found, list) else []


def _items(given: Object, key: str) -> Iterator[Object]:
    return (each for each in _list(given, key) if isinstance(each, dict))
