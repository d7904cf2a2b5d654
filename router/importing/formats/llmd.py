"""llm-d and other schedulers of the Gateway API's inference extension: InferencePool, EndpointPickerConfig, ...

A file may have several documents, and a ConfigMap may hold a scheduler's config as text. Headroom either serves in
place of gateway and scheduler, or is the scheduler (``headroom epp``): the config is the same for both.
"""

import re
from types import MappingProxyType
from typing import Final

from router.importing.draft import Draft
from router.importing.entry import Entry
from router.importing.format import Format, route, without
from router.importing.yaml_source import documents, text_block

_KINDS: Final = ("InferencePool", "EndpointPickerConfig", "InferenceObjective", "InferenceModel")
_NAME_MOST: Final = 200  # characters
_CRITICALITY: Final = MappingProxyType({"Critical": -1, "Standard": 0, "Sheddable": 10})
_IDENTITY: Final = (("apiVersion",), ("kind",), ("metadata", "name"))
_PREFILL: Final = without("prefill and decode on separate engines are not routed apart")
_PLUGINS: Final = MappingProxyType(
    {
        "prefix-cache-scorer": without("cached prefixes count in the forecast"),
        "precise-prefix-cache-scorer": without("cached prefixes count in the forecast, as engines report them"),
        "queue-scorer": without("the queue counts in the forecast"),
        "running-requests-size-scorer": without("running requests count in the forecast"),
        "kv-cache-utilization-scorer": without("the KV cache counts in the forecast; see also the policy least_kv"),
        "kv-cache-scorer": without("the KV cache counts in the forecast; see also the policy least_kv"),
        "load-aware-scorer": without("load counts in the forecast"),
        "active-request-scorer": without("requests in flight count in the forecast"),
        "session-affinity-scorer": without("see the policy session_affinity"),
        "no-hit-lru-scorer": without("cached prefixes count in the forecast"),
        "lora-affinity-scorer": without("backends that have the adapter are candidates first"),
        "predicted-latency-scorer": without("this is what slo_headroom does"),
        "slo-scorer": without("this is what slo_headroom does; the headers x-llm-d-slo-... are read too"),
        "max-score-picker": without("slo_headroom draws among those that are nearly equal"),
        "random-picker": without("see the policy random"),
        "weighted-random-picker": without("see the policy llmd_headroom"),
        "single-profile-handler": without("there is one profile"),
        "decode-filter": _PREFILL,
        "prefill-filter": _PREFILL,
        "pd-profile-handler": _PREFILL,
        "prefill-header-handler": _PREFILL,
        "by-label": without("see labels of a backend; every backend that serves the model is a candidate"),
        "utilization-detector": without("requests are held or shed by forecast, see policy.admission"),
    }
)
_REASONS: Final = MappingProxyType(
    {
        "saturationDetector": without("requests are held or shed by forecast, see policy.admission"),
        "flowControl": without("requests are held by deadline; for fair shares, policy.admission: fair"),
        "featureGates": without(),
        "dataLayer": without("engines are recognised by their own pages"),
        "data": without("engines are recognised by their own pages"),
        "parser": without("the protocols are those that the gateway serves"),
        "requestHandler": without("the protocols are those that the gateway serves"),
        "schedulingProfiles": without("one policy decides, by forecasts in seconds in place of weights"),
        "parameters": without("parameters of that plugin"),
        "failureMode": without("the data plane has it: it stays in the InferencePool"),
        "appProtocol": without("engines are reached over HTTP/1.1"),
        "metadata": without("metadata of Kubernetes"),
        "status": without("state of Kubernetes"),
    }
)


def _recognises(text: str) -> bool:
    return re.search(rf"kind[\"']?\s*:\s*[\"']?(?:{'|'.join(_KINDS)})\b", text) is not None


def _read(text: str, name: str) -> list[Entry]:
    """The documents, and those that a ConfigMap holds as texts."""
    trees: list[Entry] = []
    for tree in (each for document in documents(text, name) for each in _objects(document)):
        trees.append(tree)
        for part in _data(tree) if _kind(tree) == "ConfigMap" else ():
            if "EndpointPickerConfig" in part.text:
                part.used = True
                trees += text_block(part, name)
    return trees


def _objects(document: Entry) -> list[Entry]:
    """The object, or those of a list, as `kubectl get -o yaml` prints several."""
    if _kind(document) != "List":
        return [document]
    others = [part for part in document.parts if part.key not in {"apiVersion", "kind", "items", "metadata"}]
    return _parts(document.get("items")) + others


def _kind(tree: Entry) -> str:
    found = tree.get("kind")
    return found.text if found is not None else ""


def _take(trees: list[Entry], draft: Draft) -> None:
    models = _models(trees, draft)
    for tree in trees:
        match _kind(tree):
            case "InferencePool":
                _pool(tree, models, draft)
            case "EndpointPickerConfig":
                _scheduler(tree, draft)
            case "InferenceObjective":
                _objective(tree, draft)
            case kind if kind not in _KINDS and not any(part.used for part in _data(tree)):
                tree.path = tree.path or (kind or "a document",)
                draft.note(tree, without(f"{kind} is neither pool nor scheduler") if kind else "has no kind")
        for known in _IDENTITY:
            tree.take(*known)


def _data(tree: Entry) -> list[Entry]:
    return _parts(tree.get("data"))


def _pool(tree: Entry, models: dict[str, object], draft: Draft) -> None:
    """The pods of the pool, by their labels; and where the gateway calls its endpoint picker."""
    spec = tree.get("spec")
    if spec is None:
        draft.note(tree, "left out: spec is missing")
        return
    labels = spec.get("selector", "matchLabels") or spec.get("selector")
    pairs = [(part, f"{part.key}={part.text}") for part in labels.parts if not part.parts] if labels is not None else []
    if not pairs:
        draft.note(spec, "left out: spec.selector has no labels")
        return
    for part, _ in pairs:
        part.used = True
    source: dict[str, object] = {"selector": ",".join(text for _, text in pairs)}
    namespace = tree.take_text("metadata", "namespace")
    if namespace:
        source["namespace"] = namespace
    port = spec.get("targetPorts", 0, "number") or spec.get("targetPortNumber")
    if port is not None and port.count:
        port.used = True
        source["port"] = port.count
    further = spec.get("targetPorts")
    for extra in further.parts[1:] if further is not None else ():
        draft.note(extra, "left out: a pod is one backend; list the engines on its other ports under backends")
    draft.discover(labels or spec, "kubernetes", source, {"models": models} if models else {})
    _picker(spec, draft)


def _picker(spec: Entry, draft: Draft) -> None:
    for name in ("endpointPickerRef", "extensionRef"):
        picker = spec.get(name)
        if picker is None:
            continue
        for known in ("name", "group", "kind"):
            picker.take(known)
        port = picker.get("port", "number") or picker.get("portNumber")
        if port is not None and port.count:
            port.used = True
            draft.put(port, "0.0.0.0", "epp", "host")  # where the gateway of a cluster calls
            draft.put(
                port, port.count, "epp", "port", comment="of `headroom epp`, whose Service has this pool's picker name"
            )


def _scheduler(tree: Entry, draft: Draft) -> None:
    """Headroom's own policy in place of the scorers, each of which is named."""
    for plugin in _parts(tree.get("plugins")):
        kind = plugin.get("type")
        if kind is not None and not kind.parts:
            plugin.take("name")
            draft.note(kind, f"{kind.text}: {_PLUGINS.get(kind.text, 'a plugin that is not known to this import')}")
    profiles = tree.get("schedulingProfiles")
    if profiles is None:
        return
    route(draft, Entry(profiles.line, profiles.path), "llmd_headroom")
    for profile in profiles.parts:
        profile.take("name")
        for reference in _parts(profile.get("plugins")):
            reference.take("pluginRef")  # the plugin itself is named


def _parts(entry: Entry | None) -> list[Entry]:
    return entry.parts if entry is not None else []


def _objective(tree: Entry, draft: Draft) -> None:
    """A class of requests. More is more urgent there, less is here."""
    name = _metadata_name(tree)
    priority = tree.get("spec", "priority")
    tree.take("spec", "poolRef")
    if name and priority is not None and (number := priority.number) is not None and number == int(number):
        priority.used = True
        draft.put(priority, {"priority": -int(number)}, "slo_classes", name, comment="by the header x-slo-class")


def _models(trees: list[Entry], draft: Draft) -> dict[str, object]:
    """Of InferenceModels: clients' names with engines' names. Their criticality is that of a class."""
    found: dict[str, object] = {}
    for tree in trees:
        if _kind(tree) != "InferenceModel":
            continue
        model = tree.take_text("spec", "modelName") or _metadata_name(tree)
        targets = tree.get("spec", "targetModels")
        names = [part for part in _parts(targets) if part.get("name") is not None]
        tree.take("spec", "poolRef")
        if len(names) == 1:
            found[model] = names[0].take_text("name")
            names[0].take("weight")
        elif model and not names:
            found[model] = model
        elif model:
            found |= _split(model, names, draft)
        critical = tree.get("spec", "criticality")
        if critical is not None and critical.text in _CRITICALITY and model:
            critical.used = True
            draft.put(
                critical, {"priority": _CRITICALITY[critical.text]}, "slo_classes", model, comment="by x-slo-class"
            )
    return {name: target for name, target in found.items() if name and target and len(name) <= _NAME_MOST}


def _split(model: str, targets: list[Entry], draft: Draft) -> dict[str, object]:
    """One name for several models, by weight; the models that serve it."""
    weights = {part.take_text("name"): part.get("weight") for part in targets}
    shares = {name: 1.0 if weight is None else weight.number or 0.0 for name, weight in weights.items()}
    if min(shares.values()) <= 0 or max(map(len, shares)) > _NAME_MOST:
        for part in targets:
            draft.note(part, "left out: expected a weight above 0 and a name of at most 200 characters")
        return {}
    for weight in weights.values():
        if weight is not None:
            weight.used = True
    draft.put(targets[0], {"split": shares}, "models", model)
    return {name: name for name in shares}


def _metadata_name(tree: Entry) -> str:
    found = tree.get("metadata", "name")
    return found.text if found is not None else ""


FORMAT: Final = Format("llm-d", "objects of llm-d and the Gateway API", _recognises, _read, _take, _REASONS)
