"""An endpoint's labels as facts of a backend: those that a config could give, each checked like the config's own.

A label that is no valid fact is left out and named; the rest counts. A label with the prefix of facts that is none of
them is named too. Neither secrets nor files can be named by a label:
what reads the environment or the disk of this machine is the config's alone.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError

from router.config import settings
from router.config.backend import resolve
from router.config.text import ConfigProblem, key_path, problems
from router.core.profile import NO_PROFILE, Profile
from router.gateway.sources.endpoint import Endpoint

FACTS: Final = frozenset(
    {
        "models", "card", "model", "engine", "protocol", "tp", "pp", "precision", "seqs_max", "kv_tokens_max",
        "context_tokens_max", "chunk_tokens", "price_per_hour", "network_ms", "weight", "variant",
    }
)  # fmt: skip
PREFIX: Final = "headroom/"  # of labels that are facts, where an endpoint has labels for other readers too
_ALIKE: Final = 0.75  # as difflib measures it: a name that is as near to a fact was meant to be it
_LABELS_MAX: Final = 64
_LABEL_LENGTH_MAX: Final = 200
_LAID_OUT: Final = ("card", "model", "tp", "pp", "precision")  # facts that together do not fit, or do
_NO_ADDRESS: Final = frozenset({"name", "url"})


def backend_of(
    endpoint: Endpoint, defaults: settings.BackendDefaults, profile: Profile = NO_PROFILE
) -> tuple[settings.Backend | None, tuple[str, ...]]:
    """The backend of an endpoint (None: it has no usable address), and what of it was left out and why."""
    facts = {key: _fact(key, value) for key, value in endpoint.labels.items() if key in FACTS}
    own = {key: getattr(defaults, key) for key in defaults.model_fields_set}
    own["labels"] = defaults.labels | _other_labels(endpoint.labels)
    faults = [
        f"{key}: there is no such fact; did you mean {meant(key)!r}?" for key in endpoint.labels if _misspelt(key)
    ]
    while True:
        given = own | facts | {"name": endpoint.name, "url": endpoint.url}
        found = _made(given, profile)
        if isinstance(found, settings.Backend):
            return found, tuple(faults)
        faults += [f"{key_path(each.loc)}: {each.message}" for each in found]
        wrong = {str(each.loc[0]) if each.loc else "" for each in found}
        drop = (wrong | set(_LAID_OUT) if wrong & set(_LAID_OUT) and not wrong & facts.keys() else wrong) & facts.keys()
        if wrong & _NO_ADDRESS or not drop:
            return None, tuple(faults)
        facts = {key: value for key, value in facts.items() if key not in drop}


def meant(label: str) -> str:
    """The fact that a name, with or without the prefix, is nearly; empty where it is near to none."""
    near = get_close_matches(label.removeprefix(PREFIX).lower(), sorted(FACTS), n=1, cutoff=_ALIKE)
    return near[0] if near else ""


def _misspelt(label: str) -> bool:
    return label.startswith(PREFIX) and bool(meant(label))


def _made(given: Mapping[str, Any], profile: Profile) -> settings.Backend | list[ConfigProblem]:
    try:
        found = settings.Backend.model_validate(given)
    except ValidationError as error:
        return list(problems(error, settings.Backend))
    engine = resolve(found, (), profile=profile)
    return engine if isinstance(engine, list) else found


def _fact(key: str, value: Any) -> Any:
    """Names of models in one text, as a label has them: separated by commas, ``ours=theirs`` where they differ."""
    if key != "models" or not isinstance(value, str):
        return value
    pairs = (name.partition("=") for name in value.split(",") if name.strip())
    return {ours.strip(): (theirs if equals else ours).strip() for ours, equals, theirs in pairs}


def _other_labels(labels: Mapping[str, Any]) -> dict[str, str]:
    """The labels that are no facts, for policies and pages to read."""
    return dict(list(_plain(labels))[:_LABELS_MAX])


def _plain(labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in labels.items():
        text = str(value) if isinstance(value, str | int | float) else ""
        if key not in FACTS and 0 < len(text) <= _LABEL_LENGTH_MAX and len(key) <= _LABEL_LENGTH_MAX:
            yield key, text
