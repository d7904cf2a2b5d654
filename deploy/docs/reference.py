"""The reference as Markdown, made of the code: the schema of configs, the metrics, the command lines.

No text stands here: sections are described by their docstrings, keys by the comments of deploy/router.yaml, metrics and
options by their help. Must not depend on MkDocs.
"""

import ast
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.docs.links import ROOT
from router.arguments import Command, Program
from router.autoscaler.metrics import ScalingMetrics
from router.commands.table import PROGRAM as ROUTER
from router.config.settings import Settings
from router.core.quota import Quota, QuotaRules, Quotas
from router.gateway.telemetry import policy_metrics
from router.gateway.telemetry.metrics import Metrics
from router.gateway.workers.crew import WORKER_METRICS
from router.targets import registry as targets
from simulator.commands.table import PROGRAM as SIMULATOR
from simulator.pool_file import PoolFile

EXAMPLE: Final = ROOT / "deploy" / "router.yaml"
_WIDTH: Final = 100
_KEY: Final = re.compile(
    r"(?P<indent> *)(?P<dash>- )?(?P<key>[a-z][a-z0-9_]*):(?: (?P<value>.*?))?(?: +# (?P<comment>.*))?"
)
_PLAIN: Final = {"str": "text", "int": "whole number", "float": "number", "bool": "`true`, `false`", "Any": "any value"}
Model = type[BaseModel]


# ---- configs ----------------------------------------------------------------------


def config() -> str:
    """Every section of router.yaml."""
    return "\n".join([*_sections(Settings, comments(EXAMPLE.read_text(encoding="utf-8"))), *_targets()])


def pool() -> str:
    """Every section of pool.yaml."""
    return "\n".join(_sections(PoolFile, {}))


def _sections(root: Model, described: Mapping[str, str]) -> Iterator[str]:
    """Each section once, in the order of the file, with the keys under which it stands."""
    seen: dict[Model, list[str]] = {}
    _collect(root, "", seen)
    for places in seen.values():
        places.sort(key=lambda place: place.count(".") + place.count("[]"))
    names = {model: places[0] for model, places in seen.items()}
    for model, places in seen.items():
        title = "Top level" if model is root else _code(places[0])
        yield f"\n## {title} {{#{_anchor(places[0])}}}\n"
        if len(places) > 1:
            yield f"The same keys: {', '.join(map(_code, places[1:]))}.\n"
        if model is not PoolFile and (text := docstring(model)):
            yield prose(text) + "\n"
        yield "| key | value | default | |\n| --- | --- | --- | --- |"
        for name, given in model.model_fields.items():
            text = next(
                (
                    described[f"{place}.{name}".strip(".")]
                    for place in places
                    if f"{place}.{name}".strip(".") in described
                ),
                "",
            )
            yield f"| `{name}` | {_kind(given, names)} | {_default(given)} | {_cell(text)} |"


def _collect(model: Model, place: str, seen: dict[Model, list[str]]) -> None:
    if model in seen:
        if place not in seen[model]:
            seen[model].append(place)
        return
    seen[model] = [place]
    for name, given in model.model_fields.items():
        for inner, within in _inner(given.annotation, f"{place}.{name}".strip(".")):
            _collect(inner, within, seen)


def _inner(annotation: Any, place: str) -> Iterator[tuple[Model, str]]:
    """The sections inside of a type, with the place of each: ``backends[]``, ``slo_classes.NAME``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and not arguments and issubclass(annotation, BaseModel):
        yield annotation, place
    elif origin in (tuple, list, frozenset):
        yield from _inner(arguments[0], f"{place}[]")
    elif origin in (dict, Mapping):
        yield from _inner(arguments[1], f"{place}.NAME")
    else:
        for each in arguments if origin is not Annotated else arguments[:1]:
            if not isinstance(each, str):
                yield from _inner(each, place)


def _kind(given: FieldInfo, names: Mapping[Model, str]) -> str:
    """The type of a key's value, with its range."""
    return _typed(given.annotation, names) + _range(given.metadata)


def _typed(annotation: Any, names: Mapping[Model, str]) -> str:
    if annotation in names:
        return f"[section](#{_anchor(names[annotation])})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _typed(arguments[0], names) + _range(_flat(arguments[1:]))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    inner = [_typed(each, names) for each in arguments if each not in (NoneType, Ellipsis)]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(inner))
    if inner:
        return f"{inner[0]}: {inner[1]}" if origin in (dict, Mapping) else f"list of {_plural(inner[0])}"
    return _PLAIN.get(getattr(annotation, "__name__", "Any"), "path")


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in {"text", "number", "path", "whole number"} else kind


def _flat(metadata: Iterable[Any]) -> list[Any]:
    return [inner for each in metadata for inner in (each.metadata if isinstance(each, FieldInfo) else [each])]


def _range(metadata: Iterable[Any]) -> str:
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    bounds = [
        f"{sign} {getattr(each, name):g}"
        for each in metadata
        for kind, (sign, name) in signs.items()
        if type(each) is kind
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(given: FieldInfo) -> str:
    default = given.default
    if given.is_required():
        return "**needed**"
    if (
        default is PydanticUndefined
        or default is None
        or isinstance(default, BaseModel)
        or default in ((), {}, frozenset())
    ):
        return ""
    if isinstance(default, dict):
        default = next(iter(default.values())) if len(default) == 1 else default
    return f"`{str(default).lower() if isinstance(default, bool) else default}`" if default not in ({}, []) else ""


def _anchor(place: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", place.lower()).strip("-") or "top"


def _code(place: str) -> str:
    return f"`{place}`"


def _targets() -> Iterator[str]:
    """The options of each scaling target."""
    for name in targets.names():
        spec = targets.spec_of(name)
        yield f"\n## `autoscale.target: {name}` {{#target-{name}}}\n"
        yield prose(spec.__doc__ or "") + "\n"
        if spec.model_fields:
            yield "| key | value | default |\n| --- | --- | --- |"
        yield from (f"| `{key}` | {_kind(given, {})} | {_default(given)} |" for key, given in spec.model_fields.items())


def comments(text: str) -> dict[str, str]:
    """By the place of a key in the example config, what is written behind it there; also of what is commented out."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    last = ""
    for line in text.splitlines():
        bare = re.sub(r"^( *)# ?(?! {8})", r"\1", re.sub(r"^( *)#   ", r"\1  ", line))
        key = _KEY.fullmatch(bare)
        if key is None:
            more = re.fullmatch(r" *(?:# *)+(\S.*)", line)
            if more and last and re.match(r" *#? {20,}| *# *# {10,}", line):
                found[last] = f"{found[last]} {more[1]}"
            else:
                last = ""
            continue
        indent = len(key["indent"]) + (2 if key["dash"] else 0)
        above = [(depth, name) for depth, name in above if depth < indent]
        place = ".".join([name for _, name in above] + [key["key"]])
        above.append((indent, key["key"] + ("[]" if key["key"] in {"backends", "discover", "api_keys"} else "")))
        last = place if key["comment"] else ""
        if last:
            found.setdefault(place, key["comment"])
    return found


# ---- metrics ------------------------------------------------------------------------


def metrics() -> str:
    """Every family of a router's page, also those that have samples only while there are some; then an autoscaler's."""
    router, scaling, quotas = Metrics(lambda: 0.0), ScalingMetrics(), Quotas(QuotaRules({"*": Quota()}))
    router.quotas.watch(quotas)
    families: list[Any] = list(router.registry.collect())
    families += [kind(name, text, labels=list(labels)) for kind, name, text, labels in policy_metrics.FAMILIES.values()]
    families += text_string_to_metric_families(WORKER_METRICS.decode().replace("%d", "1"))
    rows = ["## Routers\n", *_families(families)]
    return "\n".join([*rows, "\n## Autoscaler\n", *_families(scaling.registry.collect(), vars(scaling).values())])


def _families(families: Iterable[Any], owners: Iterable[Any] = ()) -> Iterator[str]:
    """A row each. ``owners``: metrics whose families have no list of labels."""
    labels = {getattr(each, "_name", ""): getattr(each, "_labelnames", ()) for each in owners}
    yield "| name | type | labels | what |\n| --- | --- | --- | --- |"
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        of_samples = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        given = labels.get(family.name) or getattr(family, "_labelnames", ()) or of_samples
        shown = ", ".join(f"`{label}`" for label in given)
        yield f"| `{name}` | {family.type} | {shown} | {_cell(family.documentation)} |"


# ---- command lines ------------------------------------------------------------------


def commands() -> str:
    """The help of every command of the router."""
    return "\n".join(_commands(ROUTER))


def simulator() -> str:
    """The same of the simulator."""
    return "\n".join(_commands(SIMULATOR))


def _commands(program: Program) -> Iterator[str]:
    shown = [command for command in program.commands if not command.hidden]
    yield "| command | |\n| --- | --- |"
    for command in shown:
        yield f"| [`{program.name} {command.name}`](#{command.name}) | {_cell(command.help.splitlines()[0])} |"
    for command in shown:
        yield f"\n## {command.name} {{#{command.name}}}\n\n```text\n{_help(program, command)}\n```"


def _help(program: Program, command: Command) -> str:
    parser = ArgumentParser(
        prog=f"{program.name} {command.name}",
        description=command.help,
        formatter_class=partial(RawDescriptionHelpFormatter, width=_WIDTH),  # type: ignore[arg-type]
    )
    command.arguments(parser)
    return parser.format_help().rstrip()


# ---- texts --------------------------------------------------------------------------


def docstring(made: type) -> str:
    """The docstring of a class: of its source, where the compiled one has none. A section that is made of a dataclass
    has the dataclass's name, in a module that imports it.
    """
    if made.__doc__:
        return made.__doc__
    made = vars(sys.modules[made.__module__]).get(made.__name__, made)
    source = (ROOT / made.__module__.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return next((ast.get_docstring(node) or "" for node in classes if node.name == made.__name__), "")


def prose(docstring: str) -> str:
    """A docstring as Markdown: what stands between double backticks is code."""
    return re.sub(r"``(.+?)``", r"`\1`", cleandoc(docstring))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
