"""The command line as its users meet it: real processes, signals, exit statuses."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import httpx
import pytest

from tests.commands import command, router_command
from tests.fakes_router import HEALTHY, backend, config, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.policy_files import policy_text
from tests.redis_server import RedisServer, free_port, server_binary
from tests.waiting import until_async

GOOD = """
backends:
  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}
"""


async def answers(client: httpx.AsyncClient, path: str) -> bool:
    """Whether GET gives 200."""
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get(path)).status_code == 200
    return False


def test_check_says_ok_and_exits_with_0(tmp_path: Path) -> None:
    """With the version that reload and metrics will name."""
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    result = router_command(["check", str(path)])
    assert result.exit_code == 0
    assert f"{path}: OK, version" in result.output


def test_the_example_config_is_good() -> None:
    """What the docs show must serve."""
    example = Path(__file__).parents[2] / "deploy" / "router.yaml"
    assert router_command(["check", str(example)]).exit_code == 0


def test_every_key_the_example_comments_out_shows_the_default() -> None:
    """Uncommented, nothing changes but what has no default."""
    text = (Path(__file__).parents[2] / "deploy" / "router.yaml").read_text(encoding="utf-8")
    for line in ("body_bytes_max: 8388608", "keep_alive_s: 75", "stall_s: 60", "timeout_s: 0.25", "down_after: 2"):
        assert f"# {line}" in text.replace("#   ", "# ")


def test_check_names_every_fault_and_exits_with_1(tmp_path: Path) -> None:
    """On stderr, one a line."""
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("card: l4", "card: l5") + "polcy: {}\n", encoding="utf-8")
    result = router_command(["check", str(path)])
    assert result.exit_code == 1
    assert f"{path}:4: polcy: unknown key; did you mean 'policy'?" in result.stderr


def test_check_states_why_the_shared_state_fails(tmp_path: Path) -> None:
    """That is no fault of the config: routers serve without it."""
    path, port = tmp_path / "r.yaml", free_port()
    path.write_text(f"{GOOD}state: {{redis_url: 'redis://127.0.0.1:{port}'}}\n", encoding="utf-8")
    result = router_command(["check", str(path)])
    assert result.exit_code == 0
    assert f"shared state, pool default: does not answer (refused): 127.0.0.1:{port}: " in result.stdout


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
def test_check_states_what_it_found_of_the_shared_state(tmp_path: Path) -> None:
    """The server, where the keys are, who is there, and whether it takes writes."""
    path, redis = tmp_path / "r.yaml", RedisServer()
    path.write_text(f"{GOOD}state: {{redis_url: '{redis.url}', timeout_s: 5}}\n", encoding="utf-8")

    async def begin() -> None:
        await redis.start()
        await redis.do("SADD", "{headroom:default}:routers", "r1", "r2")
        await redis.do("SET", "{headroom:default}:router:r1", '{"loads": {}, "demand": {}, "version": "v"}')
        await redis.do("SET", "{headroom:default}:router:r2", "[]")
        await redis.do("SET", "{headroom:default}:belief:3:a", "learnt")

    try:
        asyncio.run(begin())
        result = router_command(["check", str(path)])
        assert result.exit_code == 0
        assert "shared state, pool default: one server (" in result.stdout
        assert f"the pool's keys at 127.0.0.1:{redis.port}, answers in " in result.stdout
        assert "; 2 routers, beliefs of 1 of 1 backends; 1 values cannot be read\n" in result.stdout
        asyncio.run(redis.do("REPLICAOF", "127.0.0.1", str(free_port())))
        result = router_command(["check", str(path)])
        assert "one server, a read-only replica (" in result.stdout
        assert "; takes no writes (read-only): " in result.stdout
    finally:
        redis.stop()


def test_check_refuses_a_policy_file_by_its_line_and_runs_none_of_it(tmp_path: Path) -> None:
    """Not the config alone is named."""
    path, ran = tmp_path / "r.yaml", tmp_path / "ran"
    impure = policy_text("good").replace("@dataclass", f"open({str(ran)!r}, 'w').close()\n\n@dataclass")
    (tmp_path / "mine.py").write_text(impure, encoding="utf-8")
    path.write_text(f"{GOOD}policy: {{routing: {{file: mine.py}}}}\n", encoding="utf-8")
    result = router_command(["check", str(path)])
    assert result.exit_code == 1
    assert f"{tmp_path / 'mine.py'}:6: uses open; a policy reads and writes nothing outside" in result.stderr
    assert not ran.exists()


def test_a_sidecar_without_redis_says_what_it_lacks(tmp_path: Path) -> None:
    """It could only talk to itself."""
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    result = router_command(["sidecar", "--config", str(path)])
    assert result.exit_code == 1
    assert "state.redis_url" in result.stderr


def test_replay_record_tells_a_broken_record_from_a_difference(tmp_path: Path) -> None:
    """Exit status 1 and the line."""
    path = tmp_path / "x.jsonl"
    path.write_text("{}", encoding="utf-8")
    result = router_command(["replay-record", str(path)])
    assert result.exit_code == 1
    assert "expected the header" in result.stderr


async def test_serve_routes_reloads_on_sighup_and_ends_on_sigterm(tmp_path: Path) -> None:
    """A stream in flight at SIGTERM ends whole before the process does; the exit status is 0."""
    path, port, go_on = tmp_path / "r.yaml", free_port(), asyncio.Event()
    whole = stream("a", "b")
    async with (
        ScriptedEngine([stream("a")], [whole[:-40], go_on, whole[-40:]]) as engine,
        Pages(dict(HEALTHY)) as pages,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client,
    ):
        text = config(backend("a", engine, pages)).replace("port: 0", f"port: {port}")
        write(path, text)
        async with command("serve", "--config", str(path)) as router:
            await until_async(lambda: answers(client, "/readyz"))
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            assert (await client.post("/v1/chat/completions", json=body)).text.endswith("data: [DONE]\n\n")
            write(path, text + "policy: {routing: round_robin}\n")
            router.send_signal(signal.SIGHUP)

            async def round_robin() -> bool:
                return bool((await client.get("/admin/policy")).json()["routing"]["name"] == "round_robin")

            await until_async(round_robin)
            async with client.stream("POST", "/v1/chat/completions", json=body) as running:
                router.send_signal(signal.SIGTERM)

                async def not_ready() -> bool:
                    with contextlib.suppress(httpx.HTTPError):
                        return (await client.get("/readyz")).status_code == 503
                    return True

                await until_async(not_ready)
                go_on.set()
                assert (await running.aread()).endswith(b"data: [DONE]\n\n")
            async with asyncio.timeout(10):
                assert await router.wait() == 0


async def test_a_rollback_asked_of_something_else_says_so() -> None:
    """A wrong --url is a line, not a traceback."""
    async with Pages({"/admin/rollback": (404, b"<html>not found</html>")}) as other:
        url = f"http://127.0.0.1:{other.port}"
        async with command("rollback", "--url", url) as asked, asyncio.timeout(20):
            _, said = await asked.communicate()
    assert asked.returncode == 1
    assert said.decode().split() == f"{url} answered 404 and is no Headroom gateway".split()


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_two_routers_and_a_sidecar_share_one_redis(tmp_path: Path) -> None:
    """Routers see each other's streams and what the sidecar reads, also after Redis has been away."""
    go_on, ports = asyncio.Event(), (free_port(), free_port())
    whole = stream("a", "b")
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        engine = await stack.enter_async_context(ScriptedEngine([whole[:-40], go_on, whole[-40:]]))
        busy = HEALTHY | {"/metrics": (200, b"vllm:num_requests_running 5\nvllm:num_requests_waiting 6\n")}
        pages = await stack.enter_async_context(Pages(busy))
        clients = []
        for port in ports:
            path = tmp_path / f"{port}.yaml"
            state = f"state: {{redis_url: '{redis.url}', router_id: r{port}}}\n"
            text = config(backend("a", engine, pages), more=state).replace("port: 0", f"port: {port}")
            write(path, text.replace("period_s: 0.02", "period_s: 0.02, source: state"))
            await stack.enter_async_context(command("serve", "--config", str(path)))
            url = f"http://127.0.0.1:{port}"
            clients.append(
                await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=120, trust_env=False))
            )
        await stack.enter_async_context(command("sidecar", "--config", str(path)))
        one, two = clients
        for client in clients:
            await until_async(lambda client=client: answers(client, "/readyz"))

        async def others() -> int:
            backends = (await two.get("/admin/fleet")).json()["backends"]
            return int(backends[0]["others"])

        async def state_up() -> bool:
            return "headroom_state_up 1.0" in (await two.get("/metrics")).text

        async def reported() -> bool:
            return 'headroom_engine_waiting{backend="a"} 6.0' in (await two.get("/metrics")).text

        async def peers_gone() -> bool:
            return not await state_up() and not (await two.get("/admin/fleet")).json()["peers"]

        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        async with one.stream("POST", "/v1/chat/completions", json=body) as running:
            await until_async(others)
            await until_async(reported)
            redis.stop()
            await until_async(peers_gone)
            await redis.start()
            await until_async(others)
            go_on.set()
            assert (await running.aread()).endswith(b"data: [DONE]\n\n")

        async def nobody() -> bool:
            return await others() == 0

        await until_async(nobody)
        assert json.loads((await two.get("/readyz")).text)["ready"] is True


async def until_up(demo: asyncio.subprocess.Process) -> bytes:
    """What the demo printed until all of it was up."""
    assert demo.stdout is not None
    said = b""
    async with asyncio.timeout(60):
        while b"Ctrl-C ends all of it" not in said:
            line = await demo.stdout.readline()
            assert line, said
            said += line
    return said


async def test_the_demo_serves_and_ends_with_all_its_engines() -> None:
    """Three emulated engines, one of them Triton; each serves; SIGINT leaves nothing behind."""
    port = free_port()
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client,
        command("demo", "--port", str(port), "--speed", "20") as demo,
    ):
        said = await until_up(demo)
        assert b"curl -N http://127.0.0.1:%d/v1/chat/completions" % port in said
        fleet = (await client.get("/admin/fleet")).json()
        assert [b["protocol"] for b in fleet["backends"]] == ["openai", "openai", "triton"]
        assert len({(b["card"], b["tp"]) for b in fleet["backends"]}) == 3
        body = {"model": "demo", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(30)))
        assert all(reply.text.endswith("data: [DONE]\n\n") for reply in replies)
        demo.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await demo.wait() == 0
        for backend_ in fleet["backends"]:
            with pytest.raises(httpx.ConnectError):
                await client.get(backend_["url"] + "/health")


async def test_engines_of_a_demo_that_is_killed_end_by_themselves() -> None:
    """Nobody is left to end them: the end of their standard input does."""
    port = free_port()
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client,
        command("demo", "--port", str(port), "--speed", "20") as demo,
    ):
        await until_up(demo)
        urls = [backend_["url"] for backend_ in (await client.get("/admin/fleet")).json()["backends"]]
        demo.kill()
        await demo.wait()

        async def are_gone() -> bool:
            answers = await asyncio.gather(*(client.get(f"{url}/health") for url in urls), return_exceptions=True)
            return all(isinstance(answer, httpx.ConnectError) for answer in answers)

        await until_async(are_gone)
