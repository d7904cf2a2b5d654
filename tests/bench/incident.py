"""An incident replayed, and explained from the page and the logs alone: `python -m tests.bench.incident --shots shots`.

A gateway serves three emulated engines while clients send. Then an engine is killed and started again, a config is
refused, a burst comes that the fleet cannot serve, and a canary fails. After each step it prints what an operator
finds: the lines that were logged since, and what the page shows where there is a browser. The exit status is 1 where
one of them lacks a word without which the cause cannot be found. ``--shots``: a folder for pictures of the page.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.bench.test_reload_load import until_up
from tests.browser import Tab, browser, found
from tests.policy_files import policy_file
from tests.redis_server import free_port

ENGINES = {
    "l20": ("--card", "l20", "--max-num-seqs", "24"),
    "a10x2": ("--card", "a10", "--tp", "2", "--max-num-seqs", "24"),
    "h20": ("--card", "h20", "--max-num-seqs", "24"),
}
STEP_S = 600.0  # the longest that a step may take to be seen
WAIT_S = 0.2
PAGE_S = 30.0  # the page reads once a second
RATE = 3.0
BURST = 240
WORDS = "why is the sky blue and the sea green " * 12


def config(folder: Path, port: int, ports: dict[str, int], more: str = "") -> str:
    """The gateway's config in a folder; *more*: within ``policy``."""
    backends = "".join(
        f"  - {{name: {name}, url: 'http://127.0.0.1:{ports[name]}', models: [demo], model: qwen2.5-7b, seqs_max: 24, "
        f"card: {words[1]}, tp: {words[3] if words[2] == '--tp' else 1}}}\n"
        for name, words in ENGINES.items()
    )
    return (
        f"listen: {{port: {port}}}\nbackends:\n{backends}"
        "slo_classes:\n  default: {ttft_ms: 1000, tpot_ms: 24, quantile: 0.9}\n"
        f"policy: {{routing: slo_headroom, guard: {{budget_ms: 2000}}{more}}}\n"
        "reload: {validation: {attainment_drop_max: 1.0, requests_max: 60, seconds_max: 600}}\n"
        f"log: {{access: json, access_file: {folder}/access.log}}\nscrape: {{period_s: 0.5}}\n"
    )


@dataclass
class Scene:
    """What an operator has: the page, the log, the access log."""

    url: str
    folder: Path
    shots: Path | None
    engines: dict[str, Process]
    ports: dict[str, int]
    tab: Tab | None = None
    seen: dict[str, int] = field(default_factory=dict)  # by file, the bytes that were read
    missing: list[str] = field(default_factory=list)

    def since(self, name: str) -> str:
        """What was written to a log since it was read last."""
        with (self.folder / name).open("rb") as file:
            file.seek(self.seen.get(name, 0))
            new = file.read()
        self.seen[name] = self.seen.get(name, 0) + len(new)
        return new.decode("utf-8", "replace")

    async def fleet(self) -> dict[str, Any]:
        """What the page reads."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            found: dict[str, Any] = (await client.get(f"{self.url}/admin/fleet")).json()
        return found

    async def until(self, condition: str, seen: Any) -> None:
        """Wait until the fleet is so."""
        async with asyncio.timeout(STEP_S):
            while not seen(await self.fleet()):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(WAIT_S)
        print(f"  ({condition})")

    async def step(self, name: str, log: Sequence[str], page: Sequence[str], part: str = "body") -> None:
        """Print what is to be found of it now, and note which of those words are missing."""
        print(f"\n== {name}")
        text = self.since("log")
        print(text, end="")
        self.missing += [f"{name}: the log lacks {word!r}" for word in log if word not in text]
        if self.tab is None:
            return
        for word in page:
            with suppress(TimeoutError):
                await self.tab.until(f"document.body.innerText.includes({word!r})", PAGE_S)
        shown = await self.tab.js(f"document.querySelector({part!r}).innerText")
        print("-- the page\n" + "\n".join(line for line in shown.splitlines() if line.strip())[:4000])
        whole = await self.tab.js("document.body.innerText")
        self.missing += [f"{name}: the page lacks {word!r}" for word in page if word not in whole]
        await self.shoot(name)

    async def shoot(self, name: str) -> None:
        """Pictures of the page in both themes."""
        if self.shots is None or self.tab is None:
            return
        for theme in ("light", "dark"):
            await self.tab.theme(theme)
            await self.tab.js("void history_now()")
            await asyncio.sleep(1.5)
            await self.tab.shot(self.shots / f"{name.replace(' ', '-')}-{theme}.png")


async def engine(name: str, port: int) -> Process:
    """An emulated engine that answers."""
    words = (*ENGINES[name], "--model", "qwen2.5-7b", "--model-name", "demo", "--protocol", "vllm", "--port", str(port))
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulator", "serve", *words, stdout=DEVNULL, stderr=DEVNULL
    )
    await until_up(f"http://127.0.0.1:{port}/health")
    return made


@asynccontextmanager
async def scene(folder: Path, shots: Path | None) -> AsyncIterator[Scene]:
    """Engines, gateway and, where there is one, a browser."""
    ports, port = {name: free_port() for name in ENGINES}, free_port()
    path = folder / "router.yaml"
    path.write_text(config(folder, port, ports), encoding="utf-8")
    policy_file(folder, "slowest", "slowest.py")
    async with AsyncExitStack() as stack:
        processes: dict[str, Process] = {}
        stack.push_async_callback(_end, processes)
        for name, at in ports.items():
            processes[name] = await engine(name, at)
        log = stack.enter_context((folder / "log").open("wb"))
        processes["gateway"] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router", "serve", "--config", str(path), stdout=DEVNULL, stderr=log, env=os.environ
        )
        made = Scene(f"http://127.0.0.1:{port}", folder, shots, processes, ports)
        await until_up(f"{made.url}/readyz")
        if found() is not None:
            chromium = await stack.enter_async_context(browser(folder / "profile"))
            made.tab = await chromium.tab()
            await made.tab.open(f"{made.url}/")
        yield made


async def _end(processes: dict[str, Process]) -> None:
    for each in processes.values():
        with suppress(ProcessLookupError):
            each.kill()
        await each.wait()


async def chat(client: httpx.AsyncClient, number: int, chance: Random) -> int:
    """One streamed request; its status, 0 where the stream broke."""
    length = chance.randrange(40, len(WORDS))
    body = {
        "model": "demo",
        "stream": True,
        "max_tokens": chance.randrange(8, 40),
        "messages": [{"role": "user", "content": WORDS[-length:]}],
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-request-id": f"request-{number}"})
    except httpx.HTTPError:
        return 0
    return answer.status_code


async def traffic(url: str, answers: Counter[int]) -> None:
    """Requests at a steady rate until cancelled."""
    chance = Random(7)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client, asyncio.TaskGroup() as group:
        for number in range(1 << 30):

            async def one(number: int = number) -> None:
                answers[await chat(client, number, chance)] += 1

            group.create_task(one())
            await asyncio.sleep(chance.expovariate(RATE))


async def burst(url: str) -> Counter[int]:
    """Many long requests at once; how many got which status."""
    chance = Random(9)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120, limits=limits) as client:
        return Counter(await asyncio.gather(*(chat(client, 100_000 + number, chance) for number in range(BURST))))


async def incident(it: Scene) -> None:
    """The steps."""
    path = it.folder / "router.yaml"
    good = path.read_text(encoding="utf-8")
    port = int(good.partition("port: ")[2].partition("}")[0])
    await it.until("40 requests have ended", lambda f: f["last"]["requests"] > 40)
    await it.step("loaded", [], ["SLO met", "3 backends, 0 down"], "#tiles")

    it.engines["l20"].kill()
    await it.until("l20 is down", lambda f: any(b["name"] == "l20" and b["down"] for b in f["backends"]))
    why = ["backend l20", "connection refused", "down since"]
    await it.step("engine dies", why, ["down: refused", "connection refused", "next one"], "#backends article")
    it.engines["l20"] = await engine("l20", it.ports["l20"])
    await it.until("it is up", lambda f: not any(b["down"] for b in f["backends"]))
    await it.step("engine is back", ["backend l20", "up since"], ["3 backends, 0 down"], "#backends article")

    path.write_text(good.replace("tpot_ms: 24", "tpot_ms: fast"), encoding="utf-8")
    await it.until("the config was refused", lambda f: not f["config"]["last"]["ok"])
    place = ["config refused (file changed)", "router.yaml:7", "slo_classes.default.tpot_ms", "goes on serving"]
    await it.step("config refused", place, ["Config refused at", *place[1:]], "#banners")
    path.write_text(good, encoding="utf-8")
    await it.until("the config is good again", lambda f: f["config"]["last"]["ok"])
    it.since("log")

    statuses = await burst(it.url)
    print(f"\nof {BURST} requests at once: {dict(statuses)}")
    await it.step("burst", ["requests refused since"], ["refused", "held"], "#tiles")
    fleet = await it.fleet()
    failed = [line for line in fleet["failed"] if line["outcome"] == "refused"]
    if statuses[httpx.codes.TOO_MANY_REQUESTS] and not failed:
        it.missing.append("burst: no refusal is listed")
    if failed and it.tab is not None:
        await it.tab.js(f"explain({failed[0]['id']!r})")
        await it.step("a refusal explained", [], ["refused (", "headroom"], "#explain-body")
        await it.tab.press("Escape", 27)

    path.write_text(
        config(
            it.folder, port, it.ports, ", canary: {routing: {file: slowest.py}, share: 0.5, attainment_drop_max: 0.02}"
        ),
        encoding="utf-8",
    )
    await it.until("the canary is on trial", lambda f: f["trial"] is not None)
    await it.step("canary on trial", ["validation"], ["canary on trial"], "header")
    await it.until("its trial is over", lambda f: f["trial"] is None)
    verdict = ["canary returned", "attainment is lower by at least"]
    await it.step("canary fails", verdict, verdict, "#banners")


async def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="an incident replayed, and what page and logs show of it")
    parser.add_argument("--shots", type=Path, help="a folder for pictures of the page")
    shots = parser.parse_args().shots
    if shots is not None:
        shots.mkdir(parents=True, exist_ok=True)
    answers: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="headroom-incident-") as folder:
        async with scene(Path(folder), shots) as it:
            sending = asyncio.create_task(traffic(it.url, answers))
            try:
                await incident(it)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            lines = (it.folder / "access.log").read_text(encoding="utf-8").splitlines()
            print(f"\nclients got {dict(answers)} (0: a broken stream); the access log has {len(lines)} lines")
            failures = [line for line in lines if '"termination":"--"' not in line]
            print("\n".join(failures[:5]))
    print(*it.missing, sep="\n")
    return 1 if it.missing else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
