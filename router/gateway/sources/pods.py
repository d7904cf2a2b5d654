"""Objects of the Kubernetes API as endpoints: the slices of a Service with its pods, or pods alone.

Labels and annotations ``headroom/NAME`` are facts (``headroom/card: h100``); a pod's other labels are labels of the
backend. Pure: must not depend on how the objects are read. An object of another form than the API's is left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from router.gateway.sources.endpoint import Endpoint, host_port, name_of
from router.gateway.sources.facts import FACTS

PREFIX: Final = "headroom/"
_FAMILIES: Final = ("IPv4", "IPv6")  # of slices, in order of preference; those of names are for no pods

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """``port``: the number or the name of a port, None: the only one, or the one named http; ``suffix``: of names."""

    port: int | str | None
    scheme: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """An endpoint that is taken if it is ready, or if none is."""

    endpoint: Endpoint
    ready: bool


def of_slices(slices: Iterable[Object], pods: Mapping[str, Object], wanted: Wanted) -> tuple[Endpoint, ...]:
    """The endpoints of a Service. One of a pod that is not among *pods* yet is left out until it is."""
    found: dict[str, _Place] = {}
    ranked = sorted(
        slices, key=lambda each: _FAMILIES.index(family) if (family := _text(each, "addressType")) in _FAMILIES else 9
    )
    for each in ranked:
        port = _slice_port(each, wanted.port)
        if _text(each, "addressType") in _FAMILIES and port is not None:
            for given in _items(each, "endpoints"):
                _keep(found, _of_slice(given, port, pods, wanted))
    return _members(found.values())


def of_pods(pods: Iterable[Object], wanted: Wanted) -> tuple[Endpoint, ...]:
    """The endpoints of pods without a Service."""
    found: dict[str, _Place] = {}
    for pod in pods:
        address, port = _text(_part(pod, "status"), "podIP"), _pod_port(pod, wanted.port)
        if address and port is not None and not _has_ended(pod):
            name = _text(_part(pod, "metadata"), "name")
            _keep(found, _place(name, address, port, pod, wanted, ready=_is_ready(pod)))
    return _members(found.values())


def _members(places: Iterable[_Place]) -> tuple[Endpoint, ...]:
    """Those that are ready, and those that end; where none is ready, also those that are not: health checks decide."""
    listed = sorted(places, key=lambda each: each.endpoint.name)
    some = any(each.ready and not each.endpoint.terminating for each in listed)
    return tuple(each.endpoint for each in listed if each.ready or each.endpoint.terminating or not some)


def _keep(found: dict[str, _Place], new: _Place | None) -> None:
    """Of one pod in several slices, as while it moves between them or has addresses of both families, the best."""
    if new is None:
        return
    name = new.endpoint.name
    known = found.get(name)
    if known is None or _rank(new) > _rank(known):
        found[name] = new


def _rank(place: _Place) -> tuple[bool, bool]:
    return (not place.endpoint.terminating, place.ready)


def _of_slice(given: Object, port: int, pods: Mapping[str, Object], wanted: Wanted) -> _Place | None:
    address = next((each for each in _list(given, "addresses") if isinstance(each, str)), "")
    conditions, target = _part(given, "conditions"), _part(given, "targetRef")
    pod: Object = {}
    name = name_of(f"{address}-{port}")
    if _text(target, "kind") == "Pod":
        name = _text(target, "name")
        if name not in pods:
            return None
        pod = pods[name]
    if not address or not name:
        return None
    ready = conditions.get("ready") is not False  # left out means that it is
    ends = conditions.get("terminating") is True
    zone = _text(given, "zone")
    return _place(name, address, port, pod, wanted, ready=ready, ends=ends, more={"zone": zone} if zone else {})


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
    terminating = ends or metadata.get("deletionTimestamp") is not None
    labels = {**(more or {}), **_labels(metadata)}
    url = f"{wanted.scheme}://{host_port(address, port)}"
    return _Place(Endpoint(f"{name}{wanted.suffix}", url, labels, terminating), ready)


def _labels(metadata: Object) -> dict[str, str]:
    """A pod's own labels, and its facts by their names without the prefix; what is no text is left out."""
    own = {key: value for key, value in _part(metadata, "labels").items() if isinstance(value, str)}
    notes = {key: value for key, value in _part(metadata, "annotations").items() if isinstance(value, str)}
    facts = {
        key.removeprefix(PREFIX): value for key, value in {**notes, **own}.items() if key.startswith(PREFIX) and value
    }
    return {key: value for key, value in own.items() if key not in FACTS and not key.startswith(PREFIX)} | facts


def _slice_port(given: Object, wanted: int | str | None) -> int | None:
    if isinstance(wanted, int):
        return wanted
    return _named(((_text(each, "name"), each.get("port")) for each in _items(given, "ports")), wanted)


def _pod_port(pod: Object, wanted: int | str | None) -> int | None:
    if isinstance(wanted, int):
        return wanted
    containers = _items(_part(pod, "spec"), "containers")
    ports = (port for container in containers for port in _items(container, "ports"))
    return _named(((_text(each, "name"), each.get("containerPort")) for each in ports), wanted)


def _named(ports: Iterable[tuple[str, Any]], wanted: str | None) -> int | None:
    """The port of that name; without one, the only port, or the one named http."""
    known = [(name, port) for name, port in ports if isinstance(port, int) and not isinstance(port, bool)]
    if wanted is None and len(known) == 1:
        return known[0][1]
    return next((port for name, port in known if name == (wanted or "http")), None)


def _is_ready(pod: Object) -> bool:
    conditions = _items(_part(pod, "status"), "conditions")
    return any(_text(each, "type") == "Ready" and _text(each, "status") == "True" for each in conditions)


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
