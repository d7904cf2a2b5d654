"""What a router states of its backends to the autoscaler: all of them or nothing, with their first TTFT."""

from collections.abc import Callable
from math import isnan
from pathlib import Path

import pytest

from router.gateway.config.plan import replica_of
from router.gateway.state.seen import SeenBackend, SeenVariant, seen_from, seen_json
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until, until_async


async def test_a_router_publishes_its_backends_with_what_they_are_and_how_they_began(tmp_path: Path) -> None:
    """Over the admin path an autoscaler reads them without Redis; secrets stay here."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a", "b")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages, variant="small", api_key="secret-of-a"))
        async with router(path, text) as it:
            assert (await it.chat()).status_code == 200

            async def answered() -> bool:
                view = next(iter((await it.get("/admin/routers")).json().values()))
                return bool(view.get("seen") and view["seen"][0]["up"].get("a") is not None)

            await until_async(answered)
            raw = (await it.get("/admin/routers")).text
            assert "secret-of-a" not in raw
            (view,) = (await it.gateway.store.routers(it.gateway.clock())).values()
            assert 0.0 <= view.age_s < 60.0
            (seen,) = view.seen or ()
            assert (seen.variant, seen.models, list(seen.backends)) == ("small", ("m",), ["a"])
            assert 0.0 < seen.backends["a"].first_ttft_s < 60.0
            pattern = replica_of(seen.facts, "small", ("m",), it.gateway.plan.profile)
            assert pattern is not None
            assert pattern.prior == it.gateway.plan.backends[0].prior


async def test_nothing_is_stated_before_every_source_has_answered(tmp_path: Path) -> None:
    """Some of the backends would be read as all of them, and the rest as gone."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine() as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), more="discover: [{file: targets.json}]\n")
        async with router(path, text) as it:
            await until(lambda: it.gateway.sources.states[0].failing_s is not None)
            assert it.gateway._seen() is None
            (tmp_path / "targets.json").write_text("[]")
            await until(lambda: it.gateway._seen() is not None)


SEEN = SeenVariant("small", ("m",), {"a": SeenBackend(True, 0.25), "b": SeenBackend(False)}, {"card": "l4"}, {"hit": 1})


def test_backends_pass_the_wire() -> None:
    (read,) = seen_from(seen_json((SEEN,))) or ()
    assert (read.variant, read.models, read.facts, read.learnt) == ("small", ("m",), {"card": "l4"}, {"hit": 1})
    assert read.backends["a"] == SeenBackend(True, 0.25)
    assert (read.backends["b"].up, isnan(read.backends["b"].first_ttft_s)) == (False, True)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda raw: b"",
        lambda raw: b"{",
        lambda raw: b"7",
        lambda raw: raw.replace(b'"models":["m"]', b'"models":"m"'),
        lambda raw: raw.replace(b'"variant":"small"', b'"variant":7'),
        lambda raw: raw.replace(b'{"a":0.25}', b"null"),
        lambda raw: raw.replace(b'"a"', b'"' + b"a" * 300 + b'"'),
        lambda raw: raw[:-1] + b",7]",
    ],
)
def test_of_what_cannot_be_read_in_part_nothing_is_taken(spoilt: Callable[[bytes], bytes]) -> None:
    """A part of the backends would count too few."""
    assert seen_from(spoilt(seen_json((SEEN,)))) is None


def test_a_ttft_that_cannot_be_is_none() -> None:
    for number in (b"-1", b"1e300", b'"x"'):
        (read,) = seen_from(seen_json((SEEN,)).replace(b"0.25", number)) or ()
        assert isnan(read.backends["a"].first_ttft_s)
