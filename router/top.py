"""A gateway's fleet in the terminal, redrawn every second, from its admin path.

Believes: what /admin/fleet says. Must not know how the gateway came by it.
"""

import asyncio
from time import localtime, strftime
from typing import Any, Final

import httpx
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

REDRAW_S: Final = 1.0
TROUBLES_MAX: Final = 10  # lines
_SAID_MAX: Final = 300


async def show(url: str, key: str) -> None:
    """Draw until cancelled. Raises ConnectionError when the gateway does not answer at first."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=2.0, trust_env=False) as client:
        with Live(drawn(await _fleet(client)), auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(REDRAW_S)
                try:
                    live.update(drawn(await _fleet(client)), refresh=True)
                except ConnectionError as gone:
                    live.update(Text(str(gone), style="red"), refresh=True)


async def _fleet(client: httpx.AsyncClient) -> dict[str, Any]:
    try:
        answer = await client.get("/admin/fleet")
    except httpx.HTTPError as error:
        raise ConnectionError(f"{client.base_url} does not answer: {error}") from error
    if not answer.is_success:
        raise ConnectionError(f"{client.base_url} answered {answer.status_code}: {answer.text[:_SAID_MAX]}")
    view: dict[str, Any] = answer.json()
    return view


def drawn(fleet: dict[str, Any]) -> Group:
    """The fleet as a heading and a table."""
    last = fleet["last"]
    met = f"{last['slo_met'] / last['requests']:.1%}" if last["requests"] else "-"
    push = f", {len(fleet['push']['peers'])} push changes" if fleet["push"] else ""
    heading = Text.assemble(
        ("Headroom ", "bold"),
        f"{fleet['router']}  config {fleet['version']}  policy {fleet['policy']['routing']['name']}",
        f"  peers {len(fleet['peers'])}{push}\n",
        f"in flight {fleet['in_flight']}  held {fleet['held']}  last minute: {last['requests']} requests, ",
        f"SLO met {met}, refused {last['refused']}",
    )
    return Group(
        heading,
        *trials(fleet["trial"], fleet["shadow"]),
        *_config(fleet["config"]),
        _table(fleet["backends"]),
        *_troubles(fleet["backends"]),
    )


def _config(config: dict[str, Any]) -> list[Text]:
    """A validation in progress; a refusal, with its place."""
    now, last = config["reloading"], config["last"]
    found = []
    if now:
        found.append(Text(f"config ({now['origin']}): {now['doing']}, {now['share']:.0%} done", "yellow"))
    if last["why"]:
        found.append(Text(f"{last['origin']}, {last['version']} serves: {last['why']}", "yellow"))
    if not last["ok"]:
        found.append(
            Text(f"config refused ({last['origin']}); {last['version']} goes on serving:\n{last['error']}", "red")
        )
    return found


def trials(canary: dict[str, Any] | None, shadow: dict[str, Any] | None) -> list[str]:
    """A canary while its trial runs, and a shadow, in a line each."""
    lines = []
    if canary is not None:
        arms = ", ".join(f"{name} {arm['met']} of {arm['requests']}" for name, arm in canary["arms"].items())
        drop = canary["drop"]
        spread = (
            f", a drop of {drop['mean']:.1%} (95 % interval {drop['low']:.1%} to {drop['high']:.1%})" if drop else ""
        )
        lines.append(f"canary on trial, requests that met their SLO: {arms}{spread}")
    if shadow is not None:
        gains = ", ".join(f"{name.upper()} {_or_dash(ms, '.0f')} ms" for name, ms in shadow["gain_ms"].items())
        agreement = _or_dash(shadow["agreement"], ".1%")
        lines.append(f"shadow agrees in {agreement} of {shadow['decisions']} decisions, forecast gain: {gains}")
    return lines


def _troubles(backends: list[dict[str, Any]]) -> list[Text]:
    """A line for each backend that gets no requests: why, since when, and when it is tried again."""
    lines = []
    for backend in backends:
        for down in backend["down"]:
            again = backend["check"]["next_s"] if backend["check"] else None
            due = f"; next health check {_clock(again)}" if again is not None else ""
            lines.append(f"{backend['name']}: {down['reason']} since {_clock(down['since_s'])}: {down['why']}{due}")
        if ejected := backend["failures"]["ejected"]:
            span = f"ejected since {_clock(ejected['since_s'])} until {_clock(ejected['until_s'])}"
            lines.append(f"{backend['name']}: {span}: {ejected['why']}")
    more = [f"and {len(lines) - TROUBLES_MAX} more"] if len(lines) > TROUBLES_MAX else []
    return [Text(line, "red") for line in lines[:TROUBLES_MAX] + more]


def _clock(at_s: float) -> str:
    return strftime("%H:%M:%S", localtime(at_s))


_COLUMNS: Final = (
    "backend", "card", "up", "prefill", "decode", "engine running/waiting", "KV", "mean TTFT ms (forecast)",
    "mean TPOT ms (forecast)",
    "tok/s", "req/min", "SLO met",
)  # fmt: skip


def _table(backends: list[dict[str, Any]]) -> Table:
    table = Table(*_COLUMNS, expand=True)
    for backend in backends:
        table.add_row(*_cells(backend))
    return table


def _cells(backend: dict[str, Any]) -> list[str | Text]:
    engine, last, load = backend["engine"] or {}, backend["last"], backend["load"]
    return [
        backend["name"],
        f"{backend['card']} x{backend['tp'] * backend['pp']}",
        Text(backend["down"][0]["reason"], "red") if backend["down"] else Text("up", "green"),
        str(load["prefilling"]),
        str(load["decoding"]),
        f"{_or_dash(engine.get('running'), '.0f')}/{_or_dash(engine.get('waiting'), '.0f')}",
        _or_dash(engine.get("kv_usage"), ".0%"),
        f"{_or_dash(last['ttft_ms'], '.0f')} ({_or_dash(last['ttft_predicted_ms'], '.0f')})",
        f"{_or_dash(last['tpot_ms'], '.1f')} ({_or_dash(last['tpot_predicted_ms'], '.1f')})",
        f"{last['output_tokens_per_s']:.0f}",
        str(last["requests"]),
        f"{last['slo_met'] / last['requests']:.0%}" if last["requests"] else "-",
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
