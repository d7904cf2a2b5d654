"""The command line: the only file that sees everything.

python -m router serve --config deploy/router.yaml     the gateway
python -m router check deploy/router.yaml              is this config good? exit status says so
python -m router check NEW --trace RECORD              and would its policies keep what they promise?
python -m router rollback                              back to the config that served before
python -m router demo                                  the gateway in front of three emulated engines
python -m router top                                   a running gateway's fleet, live in the terminal
python -m router sidecar --config FILE                 reads engines' metrics and publishes them to Redis
python -m router autoscale --config FILE               says how many replicas the demand needs, and why
python -m router replay-record FILE                    does a fresh core still decide as recorded?
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.logging import RichHandler

from router import demo as demonstration
from router.autoscaler.loop import Autoscaler
from router.compiled import refuse_stale
from router.core.errors import CannotStart, ConfigError, RecordError
from router.gateway.app import Gateway
from router.gateway.config.plan import Plan, plan_file
from router.gateway.monitoring.sidecar import sidecar as run_sidecar
from router.gateway.rollout.reload import offered
from router.gateway.rollout.validation import Validation
from router.gateway.telemetry.recorder import differences
from router.gateway.workers import WorkerIdentity
from router.gateway.workers.member import worker
from router.gateway.workers.parent import Parent
from router.top import show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A latency-SLO router for LLM engines.")
_errors = Console(stderr=True, soft_wrap=True, highlight=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The YAML config file.")]
AdminKey = Annotated[str, typer.Option(envvar="HEADROOM_ADMIN_KEY", help="The gateway's admin key.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]


@app.command()
def serve(
    config: Config,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes that share the port; else `listen.workers`.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Serve: route requests to the engines of the config until SIGTERM or Ctrl-C; SIGHUP reloads it."""
    _log_to_stderr(verbose)
    plan, proof = _offered(config, None, None)
    count = workers or plan.settings.listen.workers
    try:
        if count > 1:
            _run(Parent(plan, proof, config, count, *(["--verbose"] if verbose else [])).run())
        else:
            _run(Gateway(plan, config).run())
    except (OSError, CannotStart) as error:
        _fail(f"cannot serve: {error}")


@app.command("worker", hidden=True)
def one_worker(
    config: Path, folder: Path, slot: int, slots: int, name: str, port: int, parent: int, verbose: Verbose = False
) -> None:
    """One of several workers; `serve` starts it. *parent*: the descriptor of its end of a socket pair."""
    _log_to_stderr(verbose, f"worker {slot}: ")
    try:
        with socket.socket(fileno=parent) as pair:
            _run(worker(config, WorkerIdentity(folder, slot, slots, name)).serve(port, pair))
    except (OSError, ConfigError) as error:
        _fail(f"worker {slot} cannot serve: {error}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The YAML config file.")],
    trace: Annotated[
        Path | None, typer.Option(help="Prove its policies on these requests: a gateway's record or any trace.")
    ] = None,
    current: Annotated[
        Path | None, typer.Option(help="The config that serves now; its attainment must be kept. Default: least_work.")
    ] = None,
) -> None:
    """Say whether a config is good, naming file, line and key of every fault; the exit status is 0 or 1.

    With --trace or --current its policies are replayed as a reload would replay them, and attainment must not drop.
    """
    serving = _offered(current, None, None)[0] if current else None
    plan, proof = _offered(file, serving, trace)
    models = sorted({model for backend in plan.backends for model in backend.models})
    typer.echo(f"{file}: OK, version {plan.version}: {len(plan.backends)} backends, models {', '.join(models)}")
    for replay in proof.replays:
        kept = f"SLO kept {replay['candidate']:.1%}, by {current or 'least_work'} {replay['current']:.1%}"
        typer.echo(f"{replay['requests']} requests of {replay['workload']}: {kept}")


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option(help="A version from /admin/policy; default: the last good one.")] = None,
    url: Annotated[str, typer.Option(help="A running gateway.")] = "http://127.0.0.1:8080",
    key: AdminKey = "",
) -> None:
    """Let a running gateway go back to a config that served before; the file stays as it is."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            f"{url}/admin/rollback", params={"to": to} if to else {}, headers=headers, timeout=30.0, trust_env=False
        )
    except httpx.HTTPError as error:
        _fail(f"{url} does not answer: {error}")
    try:
        told = answer.json()
        said = told["version"] if answer.is_success else told["error"]
    except (ValueError, LookupError, TypeError):
        _fail(f"{url} answered {answer.status_code} and is no Headroom gateway")
    if not answer.is_success:
        _fail(said if isinstance(said, str) else answer.text)
    typer.echo(f"{url}: version {said} serves")


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Where to listen; another one is taken if it is in use.")] = 8080,
    speed: Annotated[float, typer.Option(help="How much faster than real the engines run.")] = 1.0,
) -> None:
    """The gateway in front of three emulated engines of different cards, sizes and protocols."""
    _run(demonstration.run(port, speed))


@app.command()
def top(
    url: Annotated[str, typer.Option(help="A running gateway.")] = "http://127.0.0.1:8080",
    key: AdminKey = "",
) -> None:
    """A running gateway's fleet, live in the terminal; Ctrl-C ends it."""
    try:
        _run(show(url, key))
    except ConnectionError as error:
        _fail(str(error))


@app.command()
def sidecar(config: Config, verbose: Verbose = False) -> None:
    """Read the metrics of the config's engines and publish them to its Redis, for routers with `source: state`."""
    _log_to_stderr(verbose)
    plan = _plan(config)
    if plan.settings.state.redis_url is None:
        _fail(f"{config}: state.redis_url: a sidecar publishes to Redis, and none is configured")
    _run(run_sidecar(plan))


@app.command()
def autoscale(
    config: Config,
    once: Annotated[bool, typer.Option("--once", help="Say it once and end.")] = False,
    key: AdminKey = "",
    verbose: Verbose = False,
) -> None:
    """Say how many replicas of each variant the demand needs, and why: in the log and as a Prometheus gauge."""
    _log_to_stderr(verbose)
    plan = _plan(config)
    _run(Autoscaler(plan, key).run(once=once))


@app.command("replay-record")
def replay_record(file: Annotated[Path, typer.Argument(help="What `record.file` in the config named.")]) -> None:
    """Tell a fresh core what a gateway recorded; print every command that differs, and exit with 1 if one does."""
    try:
        found = list(differences(file))
    except (RecordError, OSError) as error:
        _fail(str(error))
    for line, event, answer in found:
        typer.echo(f"{file}:{line}: {event['event']}\n  recorded: {event['answer']}\n  now:      {answer}")
    typer.echo(f"{len(found)} differences")
    raise typer.Exit(1 if found else 0)


def _plan(file: Path) -> Plan:
    with _faults_told():
        return plan_file(file)


def _offered(file: Path, running: Plan | None, trace: Path | None) -> tuple[Plan, Validation]:
    """The plan of the file, its policies proved where that is asked for or their code is new."""
    with _faults_told():
        return offered(file, running, trace)


@contextmanager
def _faults_told() -> Iterator[None]:
    """A bad config ends the command with a line a fault."""
    try:
        yield
    except ConfigError as error:
        for line in error.lines:
            _errors.print(line, style="red", markup=False)
        raise typer.Exit(1) from None


def _fail(why: str) -> NoReturn:
    _errors.print(why, style="red", markup=False)
    raise typer.Exit(1)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on uvloop where there is one; Ctrl-C is an end like any other."""
    factory = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - there is none on Windows

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _log_to_stderr(verbose: bool, who: str = "") -> None:
    """Plain lines for machines, coloured ones for a terminal; *who* begins each message."""
    terminal = sys.stderr.isatty()
    handler: logging.Handler = (
        RichHandler(console=_errors, show_path=False) if terminal else logging.StreamHandler(sys.stderr)
    )
    form = f"{who}%(message)s" if terminal else f"%(asctime)s %(levelname)s %(name)s: {who}%(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler], datefmt="%Y-%m-%dT%H:%M:%S%z")
    logging.getLogger("httpx").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # a log in the watched folder would feed itself
    if verbose:
        logging.getLogger("headroom").setLevel(logging.DEBUG)


def main() -> None:
    """The ``headroom`` command."""
    refuse_stale()
    app()


if __name__ == "__main__":
    main()
