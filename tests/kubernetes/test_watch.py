"""A collection kept up to date by a watch, over real sockets: nothing is missed, nothing is listed without need."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from router.core.errors import KubernetesError
from router.kubernetes.access import Access
from router.kubernetes.client import KubernetesClient
from router.kubernetes.watch import Collection
from tests.kubernetes.watched_api import WatchedApi
from tests.waiting import until

PODS = "/api/v1/namespaces/models/pods"
Sets = AsyncGenerator[Mapping[str, Any], None]


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


@asynccontextmanager
async def watched(api: WatchedApi, selector: str = "") -> AsyncIterator[Sets]:
    client = KubernetesClient(Access(api.url), 5.0)
    try:
        async with aclosing(Collection(client, PODS, selector).sets()) as sets:
            yield sets
    finally:
        await client.close()


def lists(api: WatchedApi) -> int:
    return sum("watch=1" not in each for each in api.log)


async def test_it_is_listed_once_in_pages_and_every_change_follows() -> None:
    """Created, changed and deleted, of those that the selector matches."""
    async with WatchedApi() as api:
        api.page_max = 2
        for name in "abcde":
            api.put("Pod", pod(name, app="x"))
        api.put("Pod", pod("other", app="y"))
        async with watched(api, "app=x") as sets:
            assert set(await anext(sets)) == set("abcde")
            assert lists(api) == 3
            api.put("Pod", pod("other2", app="y"))
            api.put("Pod", pod("f", app="x"))
            assert set(await anext(sets)) == set("abcdef")
            api.remove("Pod", "a")
            assert set(await anext(sets)) == set("bcdef")
            api.put("Pod", pod("b", app="x", more="1"))
            assert (await anext(sets))["b"]["metadata"]["labels"]["more"] == "1"
            assert lists(api) == 3


async def test_a_watch_that_ends_goes_on_from_its_last_version() -> None:
    """Also from that of a bookmark, so that a quiet collection need not be listed again; what came between is seen."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a"))
        async with watched(api) as sets:
            assert set(await anext(sets)) == {"a"}
            later = anext(sets)
            api.bookmark("Pod")
            api.put("Pod", pod("b"))
            assert set(await later) == {"a", "b"}
            api.bookmark("Pod")
            api.end_watches()
            api.put("Pod", pod("c"))
            assert set(await anext(sets)) == {"a", "b", "c"}
            assert lists(api) == 1


@pytest.mark.parametrize("as_an_event", [True, False])
async def test_what_the_server_has_forgotten_is_listed_again(as_an_event: bool) -> None:
    """410, inside a watch or as the answer to the next one: what was deleted meanwhile is gone then."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a"))
        api.put("Pod", pod("b"))
        async with watched(api) as sets:
            assert set(await anext(sets)) == {"a", "b"}
            del api.objects[PODS]["a"]  # unseen by any watch
            if as_an_event:
                api.put("Pod", pod("b"))
                await anext(sets)
                api._version += 1
                api.forget()
                api.look()
            else:
                api._version += 1
                api.forget()
            assert set(await anext(sets)) == {"b"}
            assert lists(api) == 2


async def test_a_server_that_goes_away_is_an_error_and_so_is_a_right_that_is_missing() -> None:
    """The caller lists again; the message names the path."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a"))
        async with watched(api) as sets:
            await anext(sets)
            waiting = asyncio.ensure_future(anext(sets))
            await until(lambda: api.watches == 1)
            await api.stop()
            with pytest.raises(KubernetesError):
                await waiting
            await api.start()
        api.forbidden = {"pods"}
        async with watched(api) as sets:
            with pytest.raises(KubernetesError, match="403 forbidden: cannot list /api/v1"):
                await anext(sets)


async def test_one_object_is_watched_by_its_name() -> None:
    """So that a right to that one is enough."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a"))
        api.put("Pod", pod("b"))
        client = KubernetesClient(Access(api.url), 5.0)
        async with aclosing(Collection(client, PODS, fields="metadata.name=b").sets()) as sets:
            assert set(await anext(sets)) == {"b"}
            api.put("Pod", pod("a", more="1"))
            api.remove("Pod", "b")
            assert set(await anext(sets)) == set()
        await client.close()


async def test_an_object_that_the_selector_matches_no_longer_is_gone() -> None:
    """The server sends it as deleted."""
    async with WatchedApi() as api:
        api.put("Pod", pod("a", app="x"))
        async with watched(api, "app=x") as sets:
            assert set(await anext(sets)) == {"a"}
            api.put("Pod", pod("a", app="y"))
            assert set(await anext(sets)) == set()
