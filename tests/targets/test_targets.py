"""Scaling targets: chosen by name, applied each round; the webhook posts changes alone; a toy is one file."""

import asyncio
import hashlib
import hmac
import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router import targets
from router.autoscaler.applying import Applying
from router.autoscaler.loop import Autoscaler
from router.autoscaler.metrics import ScalingMetrics
from router.config.settings import Settings
from router.config.text import document
from router.core.errors import StoreGone
from router.gateway.config.plan import Plan, make
from router.gateway.rollout.audit import Audit
from router.gateway.state import ModelDemand, RouterView
from router.targets import Advice, Applied, Outcome, names, spec_of
from router.targets.webhook import Webhook, WebhookSpec
from router.urls import http_url

CONFIG = """
backends:
  - {name: a, url: "http://h:1", models: [m], card: l20, model: qwen2.5-7b, variant: small}
autoscale: {variants: {small: {min_replicas: 1, max_replicas: 5}}, target: TARGET}
"""
ADVICE = Advice("m", "small", 3, 1, "because")


class Receiver:
    """A server on a real socket that keeps what is posted; ``status`` is its answer (0: it never answers; 1: its head
    never ends).
    """

    def __init__(self) -> None:
        self.status = 200
        self.heads: list[str] = []
        self.raw: list[bytes] = []
        self.bodies: list[dict[str, object]] = []
        self.url = ""
        self.open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open[writer] = asyncio.current_task()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                self.heads.append(head)
                self.raw.append(await reader.readexactly(length))
                self.bodies.append(json.loads(self.raw[-1]))
                if self.status == 1:
                    await self._drip(writer)
                elif self.status:
                    writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % self.status)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\n")
        while True:
            writer.write(b"a: b\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        for writer in self.open:
            writer.close()
        await asyncio.gather(*filter(None, self.open.values()))


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    it = Receiver()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/replicas"
    yield it
    server.close()
    await it.close()
    await server.wait_closed()


@asynccontextmanager
async def webhook(url: str, **options: object) -> AsyncIterator[Webhook]:
    target = spec_of("webhook").model_validate({"url": url, **options}).make({"TOKEN": "secret"})
    assert isinstance(target, Webhook)
    yield target
    await target.close()


def plan(target: str) -> Plan:
    """The plan with that text as its target."""
    parsed = document(CONFIG.replace("TARGET", target), "r.yaml")
    return make(parsed.parse(Settings), parsed, {})


async def views() -> Mapping[str, RouterView]:
    return {"r1": RouterView(demand={"m": ModelDemand(300.0, 1000, 200, 100, 98, "default")})}


async def test_the_first_advice_of_a_new_term_is_posted_whatever_was_posted_before() -> None:
    """Another autoscaler may have posted other numbers since."""
    async with receiver() as it, webhook(it.url) as target:
        await target.apply(ADVICE)
        assert (await target.apply(ADVICE)).outcome is Outcome.UNCHANGED
        await target.stand_by([Advice("m", "small", 8, 3, "more")], 1.0)
        assert (await target.apply(ADVICE)).outcome is Outcome.APPLIED
        assert [body["replicas"] for body in it.bodies] == [3, 3]


async def test_a_change_is_posted_once() -> None:
    """The advice as JSON with a key; the same advice posts nothing, another reason is no change, a return is one."""
    async with receiver() as it, webhook(it.url, token_env="TOKEN") as target:
        assert (await target.apply(ADVICE)).outcome is Outcome.APPLIED
        (body,) = it.bodies
        key = body.pop("idempotency_key")
        assert body == {"model": "m", "variant": "small", "replicas": 3, "running": 1, "why": "because", "drain": []}
        assert f"idempotency-key: {key}\r\n" in it.heads[0]
        assert "authorization: bearer secret\r\n" in it.heads[0]
        assert (await target.apply(Advice("m", "small", 3, 2, "else"))).outcome is Outcome.UNCHANGED
        assert len(it.bodies) == 1
        await target.apply(Advice("m", "small", 4, 1, "more"))
        await target.apply(Advice("m", "big", 3, 1, "more"))
        await target.apply(ADVICE)
        assert [(each["variant"], each["replicas"]) for each in it.bodies[1:]] == [
            ("small", 4),
            ("big", 3),
            ("small", 3),
        ]
        assert len({key, *(each["idempotency_key"] for each in it.bodies[1:])}) == 4


async def test_a_post_is_signed_with_the_time_at_which_it_is_sent() -> None:
    """As the README has a receiver check it: over the very bytes that came, at each attempt anew."""
    async with receiver() as it:
        options = {"url": it.url, "secret_env": "SECRET"}
        target = spec_of("webhook").model_validate(options).make({"SECRET": "hush"})
        assert isinstance(target, Webhook)
        now_s = iter((1000.9, 2000.0))
        target._clock = lambda: next(now_s)
        it.status = 503
        await target.apply(ADVICE)
        it.status = 200
        await target.apply(ADVICE)
        for head, raw, at_s in zip(it.heads, it.raw, (1000, 2000), strict=True):
            given = head.partition("headroom-signature: ")[2].partition("\r\n")[0]
            wanted = hmac.new(b"hush", f"{at_s}.".encode() + raw, hashlib.sha256).hexdigest()
            assert given == f"t={at_s},v1={wanted}"
            assert "content-type: application/json\r\n" in head
        await target.close()
    with pytest.raises(ValueError, match="environment variable SECRET is not set"):
        spec_of("webhook").model_validate(options).make({})


async def test_what_failed_is_posted_again_with_the_same_key() -> None:
    """Until it is taken."""
    async with receiver() as it, webhook(it.url) as target:
        it.status = 503
        assert await target.apply(ADVICE) == Applied(Outcome.FAILED, f"{it.url} answered 503")
        it.status = 204
        assert (await target.apply(ADVICE)).outcome is Outcome.APPLIED
        assert (await target.apply(ADVICE)).outcome is Outcome.UNCHANGED
        first, second = it.bodies
        assert first == second


async def test_a_receiver_that_was_away_for_long_gets_the_number_without_another_change() -> None:
    """The advice stands, so it is posted until it is taken, in rounds that are further and further apart."""
    async with receiver() as it, webhook(it.url) as target:
        applying = Applying(ScalingMetrics(), Audit())
        it.status = 400
        for _ in range(40):
            (applied,) = await applying.apply([ADVICE], target, lambda: True)
        assert len(it.bodies) == 6
        assert applied.outcome is Outcome.WAITING
        assert applied.reason.startswith(f"{it.url} answered 400; attempt 6 failed; the next is made in ")
        it.status = 200
        for _ in range(16):
            await applying.apply([ADVICE], target, lambda: True)
        assert len({body["idempotency_key"] for body in it.bodies}) == 1
        assert len(it.bodies) == 7


async def test_a_receiver_that_is_silent_or_gone_is_a_failure_in_bounded_time() -> None:
    """No exception leaves ``apply``."""
    async with receiver() as it, webhook(it.url, timeout_s=0.01) as target:
        it.status = 0
        assert "Timeout" in (await target.apply(ADVICE)).reason
        it.status = 1
        assert "Timeout" in (await target.apply(ADVICE)).reason
    async with webhook(it.url) as target:
        assert "ConnectError" in (await target.apply(ADVICE)).reason


async def test_what_went_wrong_is_stated_without_the_secrets_of_the_url() -> None:
    """It is in the log, in the audit log and on a page."""
    async with receiver() as it:
        it.status = 403
        async with webhook(it.url.replace("http://", "http://user:hush@") + "?key=hush") as target:
            assert (await target.apply(ADVICE)).reason == f"{it.url} answered 403"
            assert "/replicas?key=hush" in it.heads[0]
    async with webhook(it.url.replace("http://", "http://user:hush@") + "?key=hush") as target:
        gone = (await target.apply(ADVICE)).reason
    assert gone.startswith(f"{it.url}: ConnectError")
    assert "hush" not in gone
    with pytest.raises(ValueError, match="expected http://host:port, not 'http://h:0'"):
        http_url("http://user:hush@h:0")


async def test_the_loop_gives_each_advice_to_the_target_and_counts_the_outcomes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure is logged and counted, with the gauges set; a round without an answer of the routers posts nothing."""

    async def silent() -> Mapping[str, RouterView]:
        raise StoreGone("gone")

    def count(outcome: str) -> float | None:
        labels = {"model": "m", "variant": "small", "outcome": outcome}
        return loop.metrics.registry.get_sample_value("headroom_autoscale_applied_total", labels)

    async with receiver() as it:
        made = plan(f"{{name: webhook, url: '{it.url}'}}")
        target = made.target.make({})
        loop = Autoscaler(made, target)
        it.status = 500
        await loop.round(views)
        await loop.round(silent)
        it.status = 200
        await loop.round(views)
        await loop.round(views)
        await target.close()
    assert [each["replicas"] for each in it.bodies] == [5, 5]
    assert [count(each) for each in ("failed", "applied", "unchanged")] == [1, 1, 1]
    assert f"m: 5 x small was not applied: {it.url} answered 500; attempt 1 failed" in caplog.text
    assert loop.metrics.registry.get_sample_value("headroom_replicas_wanted", {"model": "m", "variant": "small"}) == 5


def test_a_token_that_is_not_in_the_environment_is_refused() -> None:
    """Better than posts that nobody takes."""
    with pytest.raises(ValueError, match="environment variable TOKEN is not set"):
        WebhookSpec(url="http://h:1", token_env="TOKEN").make({})


def test_advise_is_the_default() -> None:
    """Advice moves nothing unless the config names a target that acts."""
    text = CONFIG.replace(", target: TARGET", "")
    parsed = document(text, "r.yaml")
    assert isinstance(make(parsed.parse(Settings), parsed, {}).target, spec_of("advise"))
    assert isinstance(plan("advise").target, spec_of("advise"))
    assert names() == ["advise", "keda", "kubernetes", "local", "webhook"]


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[None]:
    """The toy's one file in the package's path, as a new file of the package would be."""
    shutil.copy(Path(__file__).parent / "toy.py", tmp_path / "toy.py")
    targets.__path__.append(str(tmp_path))
    yield
    targets.__path__.remove(str(tmp_path))


@pytest.mark.usefixtures("toy")
async def test_a_new_target_is_one_file(tmp_path: Path) -> None:
    """Found by its name, its options checked with the config, applied each round."""
    assert "toy" in names()
    out = tmp_path / "out"
    made = plan(f"{{name: toy, file: {out}}}")
    await Autoscaler(made, made.target.make({})).round(views)
    assert out.read_text() == "small=5\n"
