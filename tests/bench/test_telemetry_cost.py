"""What telemetry costs a short request in CPU: access log, traces to a collector, exemplars. `make bench` prints it.

The wire is in memory, as in test_data_plane.py, so that the request is at its cheapest and the share of telemetry at
its largest. CPU of the process is counted, with that of the threads that write and export; the collector is another
process. Short rounds without, with, and with every request traced alternate, and the best of each counts: others use
the machine as well.
"""

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import process_time

import pytest

from router.config.telemetry import Tracing
from router.core.dispatcher import Dispatcher
from router.gateway.monitoring.seen_backends import SeenBackends
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.telemetry.access_log import AccessLog
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.history import History
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.line_sink import LineSink
from router.gateway.telemetry.metrics import Metrics
from router.gateway.telemetry.refusal_log import RefusalLog
from router.gateway.telemetry.request_observers import RequestObservers
from router.gateway.telemetry.traces import Traces
from router.gateway.traffic.ports import RequestObserver
from router.gateway.traffic.request_trace import TraceSource
from tests.bench.test_data_plane import END, TOKEN
from tests.fakes_wire import STREAM_HEAD, chat
from tests.gateway.test_wire_fuzz import Bench

pytestmark = pytest.mark.benchmark

REQUESTS, TRACED, ROUNDS = 10, 100, 450
SHARE = Tracing(endpoint="http://collector").sample
REQUEST = chat(messages=[{"role": "user", "content": "hello world " * 160}])
COLLECTOR = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Takes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = HTTPServer(("127.0.0.1", 0), Takes)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def collector() -> Iterator[str]:
    """A process that takes OTLP and throws it away; its URL."""
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1/traces"
        finally:
            process.kill()


@contextmanager
def _garbage_as_in_production() -> Iterator[None]:
    """What the test runner has loaded is not looked through again, and young objects are as rarely as in a router."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Configured(Bench):
    """A gateway with some of the telemetry; ``best_us``: CPU of a request, what it leaves to export included."""

    def __init__(self, access: AccessLog | None = None, traces: Traces | None = None, share: float = 0.0) -> None:
        super().__init__()
        core, clock = self.driver.core, self.driver.clock
        assert isinstance(core, Dispatcher)
        rollout = PolicyRollout(core, Audit(), lambda *_: None)
        more: list[RequestObserver] = [
            History(rollout.arm),
            SeenBackends(core, clock),
            RefusalLog(),
        ]  # those of every router
        more += [each for each in (access, traces) if each is not None]
        self.driver._observer = RequestObservers(Metrics(clock), DemandWindow(), Journal(), rollout, clock, more)
        self.driver.traces = TraceSource(share) if traces is not None else None
        self.best_us = inf
        self._traces = traces

    def round(self, requests: int) -> None:
        """So many requests, and their export if they are traced."""
        began_s = process_time()
        for _ in range(requests):
            self.sends(REQUEST)
            self.answers(STREAM_HEAD + TOKEN)
            self.answers(END)
            self.client.written = b""
            for connection in self.upstream.open:
                connection.transport.written = b""  # type: ignore[attr-defined]
        if requests == TRACED and self._traces is not None:
            self._traces._processor.force_flush()
        self.best_us = min(self.best_us, (process_time() - began_s) / requests * 1e6)


async def test_telemetry_costs_a_tenth_of_a_short_request(tmp_path: Path) -> None:
    """All of it, with the share of traces that is the default; each part by itself, and a trace, as figures."""
    with collector() as url:
        clock = Bench().driver.clock
        traces = Traces(url, "headroom", "r", lambda _: None, clock)
        access = AccessLog(LineSink(tmp_path / "access.log"), "json", "r", clock)
        off, logged, all_on = Configured(), Configured(access), Configured(access, traces)
        traced = Configured(access, traces, 1.0)
        with _garbage_as_in_production():
            for number in range(ROUNDS):
                for each in ((off, logged, all_on), (logged, all_on, off), (all_on, off, logged))[number % 3]:
                    each.round(REQUESTS)
                if number % 15 == 0:
                    traced.round(TRACED)
        traces.close()
        access.close()
    trace_us = traced.best_us - all_on.best_us
    extra_us = all_on.best_us - off.best_us + SHARE * trace_us
    print(f"\na short request: {off.best_us:.0f} us; access log {logged.best_us - off.best_us:+.1f} us", end="")
    print(f"; a trace {trace_us:.0f} us; access log and traces of {SHARE:.0%}: {extra_us / off.best_us:+.1%}")
    assert extra_us < 0.12 * off.best_us
    for each in (off, logged, all_on, traced):
        each.ends()
