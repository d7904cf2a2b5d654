"""The data plane and the core alone, to be measured: `python -m tests.bench.bare_gateway PORT ENGINE_PORT...`.

Policy and SLO come from the environment: ROUTING (a name in policies/routing, default slo_headroom).
"""

import os
import random
import sys
from typing import Any

import uvloop

import policies
from router import stop_signals
from router.core.cards import card
from router.core.dispatcher import Dispatcher
from router.core.models import model
from router.core.physics import Shape, coefficients
from router.core.types import Backend, Slo
from router.gateway.protocols.ingress import Ingress, SloClass
from router.gateway.protocols.target import Target
from router.gateway.traffic.driver import Driver
from router.gateway.traffic.request_log import RequestLog
from router.gateway.traffic.server import serve


class Counter:
    """Counts what ended."""

    def __init__(self) -> None:
        self.outcomes = 0
        self.tokens = 0

    def arrived(self, request: object, class_slo: object) -> None:
        return

    def ended(self, outcome: RequestLog) -> None:
        self.outcomes += 1
        self.tokens += outcome.record.usage.output_tokens

    def late_tokens(self, request: object, backend: str, tokens: int, *, estimated: bool) -> None:
        self.tokens += tokens

    def rejected(self, path: str, status: int, peer: object) -> None:
        self.outcomes += 1


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An app for paths that are not routed: 200 and no body."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    port, *engines = map(int, sys.argv[1:])
    stop_signals.install(0)
    routing = policies.find("routing", os.environ.get("ROUTING", "slo_headroom"), {})
    core = Dispatcher(routing, policies.find("admission", "deadline", {}), random.Random(1))
    prior = coefficients(Shape(card("h100-sxm"), model("llama-3-8b"), 1, 1, "bf16", engine="vllm"))
    for each in engines:
        core.backend_joined(Backend(f"e{each}", ("m",), prior, seqs_max=4096, kv_tokens_max=10**8), 0.0)
    targets = [Target(f"e{each}", "127.0.0.1", each) for each in engines]
    ingress = Ingress(classes={"default": SloClass(Slo(ttft_s=30.0, tpot_s=3.0))})
    driver = Driver(core, targets, Counter(), ingress=ingress)
    uvloop.run(serve(nothing, driver, port=port))


if __name__ == "__main__":
    main()
