"""The two routers that are called ``vllm-router``, and those whose options they share (``sglang-router``, ``smg``).

A file is a command line, as a script has it, or the dynamic config (YAML or JSON) of the production stack's router,
whose keys are the same options with underscores.
"""

import re
from types import MappingProxyType
from typing import Final

from router.importing.draft import Draft
from router.importing.entry import Entry
from router.importing.format import Format, put_number, route, without
from router.importing.proxies import without_version
from router.importing.words import Word, words
from router.importing.yaml_source import documents

_PROGRAM: Final = re.compile(r"(?:^|[\s/])(?:vllm[-_]router|sglang[-_]router|smg)(?:[.\s]|$)|launch_router")
_OPTION: Final = re.compile(r"--(?:static-backends|worker-urls|routing-logic|service-discovery)\b")
_KEY: Final = re.compile(r"(?m)^\s*[\"']?(?:static_backends|static_models|routing_logic|service_discovery)[\"']?\s*:")
_ENDS: Final = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "2>&1"})
_SELECTOR: Final = re.compile(r"[^\s,=!]+==?[^\s,=!]+(?:,[^\s,=!]+==?[^\s,=!]+)*")
_ROUTINGS: Final = MappingProxyType(
    {
        "roundrobin": "round_robin",
        "round_robin": "round_robin",
        "random": "random",
        "session": "session_affinity",
        "consistent_hash": "session_affinity",
        "consistent_hashing": "session_affinity",
        "sticky_round_robin": "session_affinity",
        "prefixaware": "prefix_affinity",
        "kvaware": "prefix_affinity",
        "cache_aware": "prefix_affinity",
        "power_of_two": "power_of_two",
    }
)
_NAME_MOST: Final = 200  # characters
_PORTS: Final = ("k8s-port", "service-discovery-port")
_PREFILL: Final = without("prefill and decode on separate engines are not routed apart")
_REASONS: Final = MappingProxyType(
    {
        "session-key": without("sessions come by x-session-id; routing: session_affinity keeps them together"),
        "static-backend-health-checks": without("engines are always checked, by their health page"),
        "static-model-types": without("engines are checked by their health page"),
        "static-model-labels": without("see labels of a backend"),
        "backend-health-check-timeout-seconds": "write scrape.timeout_s",
        "k8s-watcher-timeout-seconds": without("see discover, kubernetes.timeout_s"),
        "lmcache-controller-port": without("prefixes are known from what was sent, and from what engines report"),
        "kv-aware-threshold": without("cached prefixes count in the forecast"),
        "cache-threshold": without("cached prefixes count in the forecast"),
        "balance-abs-threshold": without("load counts in the forecast"),
        "balance-rel-threshold": without("load counts in the forecast"),
        "eviction-interval-secs": without("prefixes are forgotten by their number"),
        "max-tree-size": without("prefixes are forgotten by their number; see policy.prefix_blocks_max"),
        "callbacks": without("see log.access and tracing"),
        "enable-batch-api": without("the batch API is not served"),
        "file-storage-class": without("the files API is not served"),
        "file-storage-path": without("the files API is not served"),
        "batch-processor": without("the batch API is not served"),
        "engine-stats-interval": "write scrape.period_s; 1 second is the default, for a forecast needs fresh reports",
        "request-stats-window": without("forecasts are learnt from every reply"),
        "log-stats": without("see /metrics and the page"),
        "log-stats-interval": without("see /metrics and the page"),
        "log-level": without("see serve --verbose"),
        "log-dir": without("the log goes to standard error; see log.access_file"),
        "dynamic-config-json": "import that file too",
        "dynamic-config-yaml": "import that file too",
        "otel-endpoint": "write tracing.endpoint, of OTLP over HTTP: pip install 'headroom-router[otel]'",
        "otel-service-name": "write tracing.service",
        "sentry-dsn": without("see tracing and the logs"),
        "request-rewriter": without("a body is passed on as it came"),
        "feature-gates": without(),
        "vllm-pd-disaggregation": _PREFILL,
        "pd-disaggregation": _PREFILL,
        "prefill": _PREFILL,
        "decode": _PREFILL,
        "prefill-policy": _PREFILL,
        "decode-policy": _PREFILL,
        "prefill-selector": _PREFILL,
        "decode-selector": _PREFILL,
        "prefill-model-labels": _PREFILL,
        "decode-model-labels": _PREFILL,
        "intra-node-data-parallel-size": without("give each rank that has a port of its own as a backend"),
        "enable-igw": without("each backend has its models"),
        "prometheus-port": without("metrics are at /metrics of listen.port"),
        "prometheus-host": without("metrics are at /metrics of listen.port"),
        "request-id-headers": without("x-request-id is passed on"),
        "queue-size": without("see held_max of the policy `deadline`"),
        "queue-timeout-secs": without("see hold_s_max of the policy `deadline`"),
        "max-concurrent-requests": "write listen.connections_max; requests are shed by forecast, not by number",
        "rate-limit-tokens-per-second": without("see quotas"),
        "retry-initial-backoff-ms": without("a retry goes to another backend at once"),
        "retry-max-backoff-ms": without("a retry goes to another backend at once"),
        "retry-backoff-multiplier": without("a retry goes to another backend at once"),
        "retry-jitter-factor": without("a retry goes to another backend at once"),
        "health-success-threshold": without("the first good check brings a backend up"),
        "health-check-endpoint": without("the path follows from the engine; see health_url of a backend"),
        "cb-success-threshold": without("one good reply ends an ejection"),
        "cb-window-duration-secs": without("failures in a row count"),
        "disable-circuit-breaker": without("set policy.limits.failures_max high"),
        "worker-startup-timeout-secs": without("an engine may take any time to start: it is down until then"),
        "worker-startup-check-interval": without("see scrape.period_s"),
        "bootstrap-port-annotation": _PREFILL,
        "kv-connector": _PREFILL,
    }
)


def _recognises(text: str) -> bool:
    return any(pattern.search(text) is not None for pattern in (_PROGRAM, _OPTION, _KEY))


def _read(text: str, name: str) -> list[Entry]:
    """Options with their words below them, however they were written."""
    if _OPTION.search(text) is None and _KEY.search(text) is not None:
        return [_with_dashes(tree) for tree in documents(text, name)]
    return [_options(words(text, name))]


def _with_dashes(tree: Entry) -> Entry:
    """The keys of a file as the options that they stand for."""
    for part in tree.parts:
        part.path = (str(part.key).replace("_", "-"),)
    return tree


def _options(given: list[Word]) -> Entry:
    """The options of the command that starts a router; words before it and after its end are settings too."""
    tree = Entry(1)
    starts = [index for index, word in enumerate(given) if _PROGRAM.search(word.text)]
    begins = starts[-1] + 1 if starts else 0
    ends = next((index for index in range(begins, len(given)) if given[index].text in _ENDS), len(given))
    for word in given[: max(0, begins - 1)]:
        name, equals, value = word.text.partition("=")
        if equals:  # a variable of the environment: its value may be a secret
            tree.add(name, word.line, value)
    option = tree
    for word in given[begins:ends]:
        if word.text.startswith("--"):
            option = _option(tree, word)
        elif word.text != "launch":
            option.add(len(option.parts), word.line, word.text)
    for word in given[ends : ends + 1]:
        tree.add(word.text, word.line, True)
    return tree


def _option(tree: Entry, word: Word) -> Entry:
    """``--port``, or ``--port=8000`` with its value."""
    name, _, value = word.text[2:].partition("=")
    option = tree.add(name.removeprefix("router-"), word.line)
    if value:
        option.add(0, word.line, value)
    return option


def _take(trees: list[Entry], draft: Draft) -> None:
    for tree in trees:
        for part in tree.parts:
            if [each.key for each in part.parts if not each.parts] == [0]:
                part.value = part.parts[0].value
                part.parts = []
        _static(tree, draft)
        _workers(tree, draft)
        _kubernetes(tree, draft)
        _limits(tree, draft)


# ---- engines ---------------------------------------------------------------------


def _static(tree: Entry, draft: Draft) -> None:
    """Addresses and models side by side, or models with their addresses."""
    aliases = _aliases(tree)
    models = tree.get("static-models")
    for part in models.parts if models is not None else ():
        for url in (part.get("static_backends") or Entry(part.line)).parts:
            url.used = True
            _backend(draft, url, url.text, str(part.key), aliases)
    urls = tree.get("static-backends")
    if urls is None:
        return
    names = models.texts() if models is not None else []
    if models is not None:
        models.used = True
    urls.used = True
    for index, address in enumerate(urls.texts()):
        _backend(draft, urls, address, names[index] if index < len(names) else "", aliases)


def _aliases(tree: Entry) -> dict[str, list[str]]:
    """By model, the further names that clients may use for it."""
    entry = tree.get("static-aliases")
    found: dict[str, list[str]] = {}
    if entry is None:
        return found
    pairs = [(str(part.key), part.text) for part in entry.parts if isinstance(part.key, str)]
    pairs += [(alias, model) for alias, _, model in (each.partition(":") for each in entry.texts()) if model]
    entry.used = True
    for alias, model in pairs:
        found.setdefault(model, []).append(alias)
    return found


def _backend(draft: Draft, entry: Entry, url: str, model: str, aliases: dict[str, list[str]]) -> None:
    if "$" in url:
        draft.note(entry, f"left out: {url} has a variable of the shell: write its value")
        return
    facts: dict[str, object] = {"engine": "vllm"}
    if model:
        facts["models"] = {each: model for each in (model, *aliases.get(model, ())) if len(each) <= _NAME_MOST}
    draft.backend(entry, without_version(url), facts)


def _workers(tree: Entry, draft: Draft) -> None:
    urls = tree.take("worker-urls")
    if urls is None:
        return
    key = tree.get("api-key")
    facts: dict[str, object] = {}
    if key is not None and key.text:
        key.used = True
        facts["api_key"] = draft.secret(key, "engine_api_key")
    for part in urls.parts or [urls]:
        if "$" in part.text:
            draft.note(part, f"left out: {part.text} has a variable of the shell: write its value")
        else:
            draft.backend(part, without_version(part.text), facts)


def _kubernetes(tree: Entry, draft: Draft) -> None:
    """Pods by their labels; the first router's options begin with ``k8s``, the second's with ``service-discovery``."""
    by = tree.get("k8s-label-selector") or tree.get("selector")
    discovery = tree.take("service-discovery")
    if by is None:
        return
    texts = [part.text for part in by.parts] or [by.text]
    selector = ",".join(text.strip() for text in texts if text.strip())
    if _SELECTOR.fullmatch(selector) is None:
        draft.note(by, "left out: expected labels such as app=vllm")
        return
    by.used = True
    source: dict[str, object] = {"selector": selector}
    for key, names in (("namespace", ("k8s-namespace", "service-discovery-namespace")), ("port", _PORTS)):
        for name in names:
            entry = tree.get(name)
            if entry is not None and not entry.parts and entry.text:
                entry.used = True
                source[key] = entry.count if key == "port" and entry.count else entry.text
    way = tree.get("k8s-service-discovery-type")
    if way is not None and way.text == "pod-ip":
        way.used = True
    draft.discover(discovery or by, "kubernetes", source, {"engine": "vllm"})


# ---- the router --------------------------------------------------------------------


def _limits(tree: Entry, draft: Draft) -> None:
    host = tree.get("host")
    if host is not None and host.text:
        host.used = True
        draft.put(host, host.text, "listen", "host")
    put_number(draft, tree.get("port"), "listen", "port", whole=True)
    for name in ("routing-logic", "policy"):
        entry = tree.get(name)
        if entry is not None and not entry.parts and entry.text != "disaggregated_prefill":
            entry.used = True
            route(draft, entry, _ROUTINGS.get(entry.text, ""))
    put_number(draft, tree.get("max-payload-size"), "listen", "body_bytes_max", whole=True)
    put_number(draft, tree.get("request-timeout-secs"), "policy", "limits", "whole_reply_s_max")
    retries = tree.get("disable-retries")
    if retries is not None:
        retries.used = True
        draft.put(retries, 1, "policy", "limits", "attempts_max")
    put_number(draft, tree.get("retry-max-retries"), "policy", "limits", "attempts_max", whole=True)
    put_number(draft, tree.get("cb-failure-threshold"), "policy", "limits", "failures_max", whole=True)
    put_number(draft, tree.get("cb-timeout-duration-secs"), "policy", "limits", "eject_s")
    put_number(draft, tree.get("health-failure-threshold"), "scrape", "down_after", whole=True)
    put_number(draft, tree.get("health-check-timeout-secs"), "scrape", "timeout_s")
    interval = tree.get("health-check-interval-secs")
    if interval is not None:
        draft.note(interval, "write scrape.period_s; 1 second is the default, for a forecast needs fresh reports")
    origins = tree.get("cors-allowed-origins")
    if origins is not None and (texts := origins.texts()):
        origins.used = True
        draft.put(origins, texts, "cors", "origins")


FORMAT: Final = Format(
    "vllm-router", "a command line or dynamic config of vllm-router", _recognises, _read, _take, _REASONS
)
