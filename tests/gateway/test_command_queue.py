"""The driver performs commands in the order of the core's answers, one after another and none inside another."""

from random import Random

import policies
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Request, Rng
from router.core.decisions import EndState, Refuse, Send
from router.core.dispatcher import Dispatcher
from router.core.flight import DispatchLimits
from router.core.record import Event, Recording
from tests import fakes
from tests.fakes_wire import chat, gateway
from tests.waiting import until

ATTEMPTS = 600  # each a few frames deep, if one were performed inside another: more than Python's limit of 1,000


async def test_sends_that_fail_at_once_do_not_recurse() -> None:
    """Each backend is known to the core and to no socket: every Send fails while it is performed."""
    backends = [fakes.backend(f"b{number}") for number in range(ATTEMPTS)]
    core = fakes.core(*backends, routing="round_robin", limits=DispatchLimits(attempts_max=ATTEMPTS))
    async with gateway(core=core) as gate:
        reply = await gate.chat()
        assert reply.status == 502
        (log,) = gate.seen.outcomes
        *sends, refusal = log.decisions
        assert [send.attempt for send in sends if isinstance(send, Send)] == list(range(1, ATTEMPTS + 1))
        assert isinstance(refusal, Refuse)
        assert log.record.outcome is EndState.REFUSED
        assert log.status == 502


class Gate:
    """A routing policy that holds every request until it is opened, then sends to the first backend."""

    def __init__(self) -> None:
        self.open = False

    def choose(self, request: Request, fleet: Fleet, _: Forecast, __: Rng) -> Choice:
        return Dispatch(int(fleet.slots[0]), "the first one") if self.open else Hold(float("inf"), "the gate is closed")


async def test_commands_are_performed_in_the_order_of_the_cores_answers() -> None:
    """One answer sends two requests; the first fails at once, and its second attempt comes after the other's first."""
    policy, events = Gate(), list[Event]()
    core = Dispatcher(policy, policies.find("admission", "deadline"), Random(7), DispatchLimits(attempts_max=2))
    for name in ("a", "b"):
        core.backend_joined(fakes.backend(name), 0.0)
    recording = Recording(core, events.append)
    async with gateway(core=recording) as gate:
        clients = [await gate.client() for _ in range(2)]
        for number, client in enumerate(clients, 1):
            client.send(chat())
            await until(lambda held=number: core.held == held)
        policy.open = True
        gate.driver.perform(recording.backend_draining("a", False, gate.driver.clock()))
        assert [(await client.reply()).status for client in clients] == [502, 502]
    first, second = [event["request"]["id"] for event in events if event["event"] == "arrived"]
    failed = [(event["id"], event["attempt"]) for event in events if event["event"] == "failed"]
    assert failed == [(first, 1), (second, 1), (first, 2), (second, 2)]
