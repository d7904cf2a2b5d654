"""The ports of one request's way: all that one part may call of the next.

A client connection calls a ``RequestDriver``; the driver starts attempts; an attempt calls a ``ReplySink``; the sink
calls a ``Client``. No implementation is imported here, so that no part depends on the one before it. Base classes and
no protocols: compiled, a call through one costs as much as a direct call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from router.core.decisions import Refuse
from router.core.flight import Failure
from router.core.quota import Quotas
from router.core.types import Request, RequestId, Slo, Usage
from router.engines import Translation
from router.gateway.protocols.answers import Problem
from router.gateway.protocols.ingress import Ingress
from router.gateway.traffic.buffers import Buffers
from router.gateway.traffic.call import Call
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http import Head
from router.gateway.traffic.request_log import RequestLog
from router.gateway.traffic.request_trace import TraceSource

Frame = Callable[[bytes], bytes]


class Client(ABC):
    """The client's side of one call: implemented by HttpExchange.

    ``response_complete``: the answer has ended; ``status``: the HTTP status sent, 0 before any; ``answer_bytes``: of
    the body of an answer of the router's own; ``peer``: the client's address and port.
    """

    __slots__ = ("answer_bytes", "peer", "response_complete", "status")

    response_complete: bool
    status: int
    answer_bytes: int
    peer: tuple[str, int] | None

    @abstractmethod
    def serves(self, model: str, fallback_why: str) -> None:
        """Another model than the client named is about to answer, before ``open``. *fallback_why*: why its own does not
        (empty: they are of one split).
        """

    @abstractmethod
    def open(
        self, head: Head, body: bytes, translation: Translation | None, backend: bytes, predicted_ttft_s: float
    ) -> Frame | None:
        """Send status, fields and first bytes of a reply. Returns the framing of later bytes, None: unchanged."""

    @abstractmethod
    def writer(self) -> Callable[[bytes], object]:
        """The function that sends later bytes: called once for every token."""

    @abstractmethod
    def socket(self) -> int:
        """The descriptor of a socket on which later bytes may be sent now as they are, since none is waiting before
        them; -1: there is none.
        """

    @abstractmethod
    def release(self) -> None:
        """The body of its request is held no longer."""

    @abstractmethod
    def finish(self) -> None:
        """The reply is complete and sent."""

    def sent(self) -> bool:
        """Whether a proxy has been given the request, which it sends once: a further attempt is this process's own."""
        return False

    def replaceable(self) -> bool:
        """Whether the reply to a further attempt can take the place of the one before, which nobody has seen."""
        return True

    @abstractmethod
    def refuse(self, command: Refuse, engine_error: EngineError | None) -> None:
        """Answer with an error: the last engine's own where it answered with one, else the reason of the refusal."""

    @abstractmethod
    def reject(self, problem: Problem) -> None:
        """Answer with *problem*."""

    @abstractmethod
    def break_off(self, why: str, ending: Frame | None) -> None:
        """End a stream that has failed, never as if it were whole.

        *ending* frames an error event and the end of the body; None: no event may follow what was sent.
        """

    @abstractmethod
    def drop(self) -> None:
        """Close the client's connection at once."""


class ReplySink(ABC):
    """Receives what happens to an attempt: implemented by the driver's record of a request in flight."""

    __slots__ = ()

    @abstractmethod
    def open(self, attempt: int, head: Head, body: bytes, translation: Translation | None) -> Frame | None:
        """The reply begins with these bytes; the framing of later ones as in ``Client.open``."""

    @abstractmethod
    def first_token(self, attempt: int) -> None:
        """The first frame that holds what the engine generated has come. Not before ``open``; never, for a reply
        without one; a later call does nothing.
        """

    @abstractmethod
    def writer(self) -> Callable[[bytes], object]:
        """The function that sends later bytes to the client."""

    @abstractmethod
    def socket(self) -> int:
        """Where later bytes may be sent instead, as ``Client.socket``."""

    @abstractmethod
    def ended(self, attempt: int, usage: Usage, last_token_s: float) -> None:
        """The reply is complete; its last token came then (nan: not known)."""

    @abstractmethod
    def failed(self, attempt: int, failure: Failure, engine_error: EngineError | None) -> None:
        """The attempt has failed; *engine_error*: the engine's own answer, if it gave one."""

    @abstractmethod
    def late_tokens(self, backend: str, tokens: int, *, estimated: bool) -> None:
        """A backend generated so many more for an attempt that was aborted, before it noticed."""


class RequestDriver(ABC):
    """Routes calls: implemented by Driver.

    ``clock``: seconds on the loop's clock; ``awake_s``: when the last pause of this process ended; ``ingress``: keys
    and SLO classes of the running config; ``draining``: no more requests are taken; ``buffers``: the bytes held in all;
    ``quotas``: how much of it tenants may use; ``traces``: gives each request its place in a trace, None: no traces are
    written.
    """

    buffers: Buffers
    quotas: Quotas
    clock: Callable[[], float]
    awake_s: float
    ingress: Ingress
    draining: bool
    traces: TraceSource | None

    @abstractmethod
    def next_id(self) -> RequestId:
        """A new, unique request id."""

    @abstractmethod
    def begin(self, call: Call, client: Client) -> None:
        """Route a call; its answer goes to *client*."""

    @abstractmethod
    def left(self, request_id: RequestId) -> None:
        """The client has closed its connection."""

    @abstractmethod
    def running(self, request_id: str) -> list[RequestLog]:
        """The request in flight whose own id this is, else all to which clients gave it, newest first: each as if its
        client left now.
        """

    @abstractmethod
    def pause(self, request_id: RequestId) -> None:
        """The client reads more slowly than the engine writes."""

    @abstractmethod
    def resume(self, request_id: RequestId) -> None:
        """The client has caught up."""

    @abstractmethod
    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request of that client was answered with an error before it reached the core."""


class RequestObserver(Protocol):
    """Receives the end of every request: metrics, journal, demand."""

    def ended(self, log: RequestLog) -> None:
        """A request that the core routed has ended."""

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request of that client was answered with an error before it reached the core."""


class TokenObserver(RequestObserver, Protocol):
    """The same, and arrivals before that end and tokens after it."""

    def arrived(self, request: Request, class_slo: Slo) -> None:
        """A request goes to the core; ``class_slo``: of its class, without its headers."""

    def late_tokens(self, request: Request, backend: str, tokens: int, *, estimated: bool) -> None:
        """A backend generated so many more for a request that has ended, before it noticed."""
