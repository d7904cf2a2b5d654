"""The command ``policy``: what serves at a running gateway, what is validated there, what differs, and a reload."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx

from router.arguments import Stop, WrongUse
from router.top import trials

ANSWER_S = 600.0  # a reload answers once it is validated
_SIDES = ("from", "to")


def run(options: Namespace) -> None:
    """Print what the gateway answers."""
    if options.action != "diff" and options.versions:
        raise WrongUse(f"policy {options.action} takes no version", "headroom policy")
    if len(options.versions) > len(_SIDES):
        raise WrongUse("policy diff compares two versions, no more", "headroom policy")
    if options.force and options.action != "reload":
        raise WrongUse("--force goes with `policy reload`", "headroom policy")
    texts = {"status": _status, "diff": _diff, "reload": _reload}[options.action](options)
    sys.stdout.write("".join(f"{text}\n" for text in texts))


def _status(options: Namespace) -> Iterator[str]:
    found = _answer(options, "GET", "/admin/policy")
    yield f"version {found['version']} serves: " + ", ".join(_policy(found, role) for role in ("routing", "admission"))
    if now := found["reloading"]:
        yield f"now ({now['origin']}, since {_time(now['since_s'])}): {now['share']:.0%} done, {now['doing']}"
    last = found["last"]
    yield f"last change ({last['origin']}, {_time(last['at_s'])}): {_result(last)}"
    if last["why"]:
        yield f"  {last['why']}"
    yield from trials(found["live"]["canary"], found["live"]["shadow"])
    yield from (f"  {line}" for line in _validation(last["validation"]))
    for version in found["history"]:
        bad = f"; not for automatic rollback: {version['bad']}" if version["bad"] else ""
        yield f"{version['version']:<22} {_time(version['at_s'])}  {version['origin']}{bad}"


def _policy(found: Mapping[str, Any], role: str) -> str:
    given = found[role]
    parameters = ", ".join(f"{key}: {value}" for key, value in given.get("parameters", {}).items())
    return f"{role} {given['name']}" + (f" ({parameters})" if parameters else "")


def _result(last: Mapping[str, Any]) -> str:
    validated = last["validation"]["result"]
    how = "" if validated in {"unneeded", "not_run"} else f", validation {validated}"
    return f"taken{how}" if last["ok"] else f"refused{how}:\n{last['error']}"


def _validation(validation: Mapping[str, Any]) -> Iterator[str]:
    """A line for each replay and each of its classes."""
    for replay in validation["replays"]:
        yield f"{replay['workload']}, {replay['requests']} requests: {_figures(replay)}"
        for each in replay.get("classes", ()):
            yield f"  class {each['slo_class']} ({each['bounds']}), {each['requests']} requests: {_figures(each)}"


def _figures(replay: Mapping[str, Any]) -> str:
    if replay["candidate"] is None or replay["current"] is None:
        return "not compared"
    half = replay.get("drop_half_width")
    spread = "" if half is None else f" ± {half:.1%}"
    return (
        f"SLO attainment {replay['candidate']:.1%}, was {replay['current']:.1%}, a drop of {replay['drop']:.1%}{spread}"
    )


def _diff(options: Namespace) -> Iterator[str]:
    names = dict(zip(_SIDES, options.versions, strict=False))
    found = _answer(options, "GET", "/admin/policy/diff", names)
    yield f"from {found['from']} to {found['to']}"
    for each in found["keys"]:
        before, now = (_value(each[side]) for side in _SIDES)
        yield f"{each['key']}: {before} -> {now}"
    yield from (text.rstrip("\n") for text in found["files"].values())
    if not (found["keys"] or found["files"]):
        yield "no differences"


def _value(value: Any) -> str:
    return "(not set)" if value is None else str(value)


def _reload(options: Namespace) -> Iterator[str]:
    found = _answer(options, "POST", "/admin/reload", {"force": "true"} if options.force else {})
    yield f"version {found['version']} serves"
    yield from _validation(found["validation"])


def _answer(options: Namespace, method: str, path: str, params: Mapping[str, str] | None = None) -> Any:
    """The JSON of an answer. Raises Stop with the reason of a refusal."""
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    try:
        answer = httpx.request(
            method, f"{options.url}{path}", params=params, headers=headers, timeout=ANSWER_S, trust_env=False
        )
    except httpx.HTTPError as error:
        raise Stop(f"{options.url} does not answer: {error}") from None
    try:
        body = answer.json()
        problem = "" if answer.is_success else body["error"]
    except (ValueError, LookupError, TypeError):
        raise Stop(f"{options.url} answered {answer.status_code} and is no Headroom gateway") from None
    if problem:
        raise Stop(problem if isinstance(problem, str) else problem.get("message", answer.text))
    return body


def _time(at_s: float) -> str:
    """Of this machine's clock and zone, as logs have it."""
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
