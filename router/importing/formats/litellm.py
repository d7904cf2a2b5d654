"""LiteLLM's proxy: its ``config.yaml``.

A deployment with an address (``api_base``) becomes a backend; several of one address become one backend that serves
several models. Deployments of hosted providers have no address and no engine to forecast.
"""

import re
from types import MappingProxyType
from typing import Final

from router.importing.draft import Draft, Value
from router.importing.entry import Entry
from router.importing.format import Format, put_number, route, without
from router.importing.proxies import without_version
from router.importing.yaml_source import documents

_ENGINES: Final = MappingProxyType(
    {"hosted_vllm": "vllm", "vllm": "vllm", "triton": "triton", "sglang": "sglang", "llamafile": "llamacpp"}
)
_OPENAI: Final = frozenset(
    (
        "custom_openai", "litellm_proxy", "lm_studio", "nvidia_nim", "openai", "openai_like", "text-completion-openai",
        "xinference",
    )
)  # fmt: skip
_ROUTINGS: Final = MappingProxyType(
    {
        "simple-shuffle": "weighted_round_robin",
        "least-busy": "least_request",
        "usage-based-routing": "least_work",
        "usage-based-routing-v2": "least_work",
        "latency-based-routing": "slo_headroom",
        "cost-based-routing": "{name: slo_headroom, parameters: {prefer: pack}}",
    }
)
_NO_KEY: Final = frozenset(
    ("", "none", "empty", "null", "dummy", "fake", "fake-key", "na", "n/a", "not-needed", "anything")
)
_ENVIRONMENT: Final = "os.environ/"
_NAME_MOST: Final = 200  # characters
_PER_TOKENS: Final = 1e6  # LiteLLM states USD a token, Headroom USD per million tokens
_COSTS: Final = MappingProxyType(
    {
        "input": "input_cost_per_token",
        "output": "output_cost_per_token",
        "cached_input": "cache_read_input_token_cost",
    }
)
_REASONS: Final = MappingProxyType(
    {
        "rpm": without("limits are of tenants and keys, see quotas.requests_per_minute"),
        "tpm": without("limits are of tenants and keys, see quotas.tokens_per_minute"),
        "max_parallel_requests": without("see quotas.requests_parallel_max, and seqs_max of a backend"),
        "global_max_parallel_requests": without("see quotas.requests_parallel_max, and seqs_max of a backend"),
        "timeout": without("time limits are of the router, see policy.limits"),
        "stream_timeout": without("time limits are of the router, see policy.limits.first_byte_s_max"),
        "order": without("every backend that meets the SLO is a candidate; see weight"),
        "fallbacks": without("expected a list of {model: [models]}; see models.NAME.fallback"),
        "default_fallbacks": without("see models.NAME.fallback, by model"),
        "context_window_fallbacks": without("a prompt goes to a backend whose context_tokens_max holds it"),
        "content_policy_fallbacks": without("a refusal of the model itself is passed on"),
        "success_callback": without("see log.access, tracing and /metrics"),
        "failure_callback": without("see log.access, tracing and /metrics"),
        "callbacks": without("see log.access, tracing and /metrics"),
        "service_callback": without("see log.access, tracing and /metrics"),
        "otel": without("see tracing"),
        "set_verbose": without("see serve --verbose"),
        "json_logs": "write log.format: json",
        "drop_params": without("a body is passed on as it came, and unknown parameters with it"),
        "modify_params": without("a body is passed on as it came"),
        "cache": without("replies are not cached; engines cache prefixes"),
        "cache_params": without("replies are not cached; engines cache prefixes"),
        "database_url": without("keys are listed under api_keys, or in files and variables that it refers to"),
        "store_model_in_db": without("backends are listed, or found by discover"),
        "proxy_batch_write_at": without("there is no database"),
        "alerting": without("see deploy/prometheus/alerts.yml"),
        "environment_variables": without("set it in the environment of the router"),
        "mode": without("the paths of a backend follow from its engine"),
        "model_info": without("limits of a model are read from its engine; see context_tokens_max"),
        "max_tokens": without("read from the engine; see context_tokens_max"),
        "max_input_tokens": without("read from the engine; see context_tokens_max"),
        "tags": without("see labels of a backend"),
        "routing_strategy_args": without("parameters of LiteLLM's own strategies"),
        "retry_policy": without("see policy.limits.attempts_max"),
        "allowed_fails_policy": without("see policy.limits.failures_max"),
        "retry_after": without("Retry-After follows from the forecast"),
        "enable_pre_call_checks": without("prompts that do not fit are recognised in any case"),
        "model_group_retry_policy": without("see policy.limits.attempts_max"),
        "custom_auth": without("see api_keys"),
        "allowed_routes": without("the paths are those of the protocols that are served"),
        "ssl_verify": without("give ca: FILE with the authority of the engine's certificate"),
    }
)


def _recognises(text: str) -> bool:
    return re.search(r"(?m)^[\"' ]*model_list[\"' ]*:", text) is not None


def _take(trees: list[Entry], draft: Draft) -> None:
    for tree in trees:
        aliases = _aliases(tree)
        for deployment in _parts(tree, "model_list"):
            _deployment(deployment, aliases, draft)
        for section in ("router_settings", "litellm_settings"):
            _limits(tree, section, draft)
            _fallbacks(tree, section, draft)
        _redis(tree, draft)
        _keys(tree, draft)


def _parts(entry: Entry, *path: str) -> list[Entry]:
    found = entry.get(*path)
    return found.parts if found is not None else []


# ---- model_list -------------------------------------------------------------------


def _aliases(tree: Entry) -> dict[str, list[str]]:
    """By group of deployments, the further names that clients may use for it."""
    found: dict[str, list[str]] = {}
    for alias in _parts(tree, "router_settings", "model_group_alias"):
        group = alias.take_text() or alias.take_text("model")
        if group:
            found.setdefault(group, []).append(str(alias.key))
    return found


def _deployment(entry: Entry, aliases: dict[str, list[str]], draft: Draft) -> None:
    """One deployment: a backend, or a model of one that is there."""
    parameters = entry.get("litellm_params")
    if parameters is None or parameters.get("model") is None:
        draft.note(entry, "left out: litellm_params.model is missing")
        return
    provider, _, served = parameters.take_text("model").partition("/")
    if not served:
        provider, served = "", provider
    name = entry.take_text("model_name") or served
    base = parameters.take_text("api_base") or parameters.take_text("base_url")
    if base.startswith(_ENVIRONMENT):
        draft.note(
            entry, f"left out: api_base is the environment variable {base[len(_ENVIRONMENT) :]}: write its value"
        )
        return
    if not base or (provider and provider not in _OPENAI and provider not in _ENGINES):
        why = (
            f"the provider {provider} is hosted, or has an API of its own" if base or provider else "it has no api_base"
        )
        draft.note(entry, f"left out: {why}; Headroom routes to engines at an address")
        return
    facts = _facts(provider, parameters, draft)
    made = draft.backend(parameters.get("api_base") or entry, without_version(base), facts)
    models = made.setdefault("models", Value({}, entry)).value
    for each in (name, *aliases.get(name, ())):
        if len(each) <= _NAME_MOST and models.setdefault(each, served) != served:
            draft.note(entry, f"left out: {each} is another model of {base} already, by an earlier deployment")
    _prices(entry, name, draft)


def _facts(provider: str, parameters: Entry, draft: Draft) -> dict[str, object]:
    facts: dict[str, object] = {}
    if provider in _ENGINES:
        facts["engine"] = _ENGINES[provider]
    key = parameters.get("api_key")
    if key is not None and key.text.lower() in _NO_KEY:
        key.used = True
    elif key is not None and not key.parts:
        facts["api_key"] = _secret(key, f"{provider or 'engine'}_api_key", draft)
    if (weight := parameters.take_positive("weight")) is not None:
        facts["weight"] = weight
    return facts


def _prices(entry: Entry, name: str, draft: Draft) -> None:
    """USD a token, of the deployment or of its model_info."""
    for section in ("litellm_params", "model_info"):
        costs = {key: found for key, cost in _COSTS.items() if (found := entry.get(section, cost)) is not None}
        usd = {key: (each.number or 0.0) * _PER_TOKENS for key, each in costs.items()}
        if not {"input", "output"} <= usd.keys() or min(usd.values()) < 0:
            continue
        for each in costs.values():
            each.used = True
        draft.put(costs["input"], {key: float(f"{price:.9g}") for key, price in usd.items()}, "prices", name)


# ---- the other sections -----------------------------------------------------------


def _limits(tree: Entry, section: str, draft: Draft) -> None:
    strategy = tree.get(section, "routing_strategy")
    if strategy is not None and not strategy.parts:
        strategy.used = True
        route(draft, strategy, _ROUTINGS.get(strategy.text, ""))
    put_number(draft, tree.get(section, "num_retries"), "policy", "limits", "attempts_max", plus=1, whole=True)
    put_number(draft, tree.get(section, "allowed_fails"), "policy", "limits", "failures_max", plus=1, whole=True)
    put_number(draft, tree.get(section, "cooldown_time"), "policy", "limits", "eject_s")
    for key in ("timeout", "request_timeout"):
        put_number(draft, tree.get(section, key), "policy", "limits", "whole_reply_s_max")
    put_number(draft, tree.get(section, "stream_timeout"), "policy", "limits", "first_byte_s_max")


def _fallbacks(tree: Entry, section: str, draft: Draft) -> None:
    """By model, those that serve its requests where it cannot. LiteLLM asks no client whether it may."""
    served = {name for each in draft.data.get("backends", []) for name in each["models"].value}
    for rule in (part for group in _parts(tree, section, "fallbacks") for part in group.parts):
        others = dict.fromkeys(other for other in rule.texts() if other != rule.key)
        strange = sorted(others.keys() - served)
        if strange or not others:
            draft.note(rule, f"left out: no backend here serves {', '.join(strange) or 'a model of it'}")
            continue
        rule.used = True
        draft.put(rule, {"fallback": list(others), "fallback_for": "everyone"}, "models", str(rule.key))


def _redis(tree: Entry, draft: Draft) -> None:
    """Where routers share what they know. Credentials are references."""
    settings = tree.get("router_settings")
    host = settings.get("redis_host") if settings is not None else None
    if settings is None or host is None or not host.text:
        return
    if host.text.startswith(_ENVIRONMENT):
        draft.note(
            host, f"left out: it is the environment variable {host.text[len(_ENVIRONMENT) :]}: write state.redis_url"
        )
        return
    port = settings.get("redis_port")
    number = port.count if port is not None else 6379
    if port is not None:
        if not number:
            draft.note(port, "left out: expected a port; 6379 is taken")
            number = 6379
        port.used = True
    host.used = True
    draft.put(host, [f"redis://{host.text}:{number}"], "state", "redis", "urls")
    password = settings.get("redis_password")
    if password is not None and password.text:
        password.used = True
        draft.put(password, _secret(password, "redis_password", draft), "state", "redis", "password")


def _keys(tree: Entry, draft: Draft) -> None:
    """The master key: of clients and of operators, as with LiteLLM."""
    master = tree.get("general_settings", "master_key")
    if master is not None and master.text and not master.parts:
        key = _secret(master, "litellm_master_key", draft)
        master.used = True
        draft.put(master, key, "admin_key", "key")
        draft.data["api_keys"] = [{"key": Value(key, master), "tenant": Value("litellm", master)}]


def _secret(entry: Entry, hint: str, draft: Draft) -> object:
    """A reference: to the variable that the file names, or to one that is to be set."""
    entry.used = True
    named = entry.text.removeprefix(_ENVIRONMENT)
    if entry.text.startswith(_ENVIRONMENT) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", named):
        return draft.variable(entry, named)
    return draft.secret(entry, hint)


FORMAT: Final = Format("litellm", "LiteLLM's config.yaml", _recognises, documents, _take, _REASONS)
