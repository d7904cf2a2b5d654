"""One check a column: what the gateway says of a request, held to what relay, client and engine saw of the same one.

Tolerances, each with its reason:

- first token: 20 ms or 10 %, the larger. The gateway's clock starts when it has read the request, the reference's when
  the client sends it; a busy event loop on either side is some milliseconds.
- TPOT: the same 20 ms over the stream after its first token, or 10 %.
- tokens: none where the engine states or counts them. Where only text is left, a third: the spread of characters a
  token between texts.
- what is off is measured twice more, and once right is right: a shared machine does not stall three times at the same
  place, and an error of what is measured comes every time.
"""

from collections.abc import Awaitable, Callable
from math import isnan

from tests.real.matrix.bench import TOKENS, Bench, BenchError, Seen, within
from tests.real.matrix.frames import CHAT, COMPLETIONS, Reply, Usage
from tests.real.matrix.relay import Cut, Exchange
from tests.real.matrix.table import OK, Cell, off, skipped

SLACK_S = 0.020
SLACK_SHARE = 0.10
ESTIMATE_SHARE = 1 / 3
TRIES = 3
BEGUN_AFTER = 3  # frames with text
LEAVES_AFTER = 12  # enough for an estimate to be held to its bound: of three tokens it may be off by as many

OF_OTHERS = skipped("other rows of the same engine have it")

Check = Callable[[Bench], Awaitable[Cell]]


def _near(got: float, want: float, slack: float) -> bool:
    return abs(got - want) <= max(slack, SLACK_SHARE * abs(want))


def _failed(seen: Seen) -> Cell | None:
    """A reply that should have been served and was not: nothing else can be checked on it."""
    if not seen.explained:
        return off("the request is unknown to /explain")
    if seen.client.status != 200 or not seen.client.ended_clean:
        said = seen.body[-160:].decode("utf-8", "replace")
        return off(f"not served: status {seen.client.status}, {seen.explained['outcome']}: {said!r}")
    return None


async def first_token(bench: Bench) -> Cell:
    """TTFT is the time to the first frame that carries text, as it left the engine."""
    seen = await bench.ask(bench.body())
    if failed := _failed(seen):
        return failed
    assert seen.engine is not None
    if seen.engine.first_text_s is None:
        return skipped("the reply has no text")
    want_s, got_s = seen.engine.first_text_s - seen.sent_s, seen.actual_s("ttft_ms")
    return OK if _near(got_s, want_s, SLACK_S) else off(f"{got_s * 1e3:.0f} ms, true {want_s * 1e3:.0f} ms")


async def tokens(bench: Bench) -> Cell:
    """Output tokens of a client that wants no usage, and its reply has none."""
    before = await bench.generated()
    seen = await bench.ask(bench.body())
    if failed := _failed(seen):
        return failed
    assert seen.engine is not None
    if seen.client.stated_usage and not (await bench.straight(bench.body())).stated_usage:
        return off("the reply states usage, which the client did not ask for")
    want, exact = await _true_tokens(bench, seen.engine, before)
    right = seen.output_tokens == want if exact else abs(seen.output_tokens - want) <= ESTIMATE_SHARE * want
    return OK if right else off(f"{seen.output_tokens} tokens, {'true' if exact else 'about'} {want}")


async def _true_tokens(bench: Bench, engine: Reply, before: float | None) -> tuple[int, bool]:
    """Tokens of a reply, and whether that is exact: by the engine's counter, its usage, or its frames with text."""
    stated = engine.usage
    if stated is not None and stated.output:
        return stated.output, True
    if before is not None:
        # what a counter says at the end of a request comes a little after its last byte
        count = await within(lambda: _more(bench, before))
        if count:
            return int(count), True
    if engine.capped:  # as many as were asked for, of an engine that neither states nor counts them
        return TOKENS, False
    return len(engine.texts), bench.under_test.frame_is_token


async def _more(bench: Bench, before: float) -> float:
    return (await bench.generated() or 0.0) - before


async def usage(bench: Bench) -> Cell:
    """A client that asks for usage gets the engine's, and the gateway's own numbers are the same."""
    asks = bench.dialect.path in {CHAT.path, COMPLETIONS.path}
    seen = await bench.ask(bench.body(usage=asks))
    if failed := _failed(seen):
        return failed
    assert seen.engine is not None
    want = seen.engine.usage
    if want is None or not want.output:
        return skipped("the engine states no usage")
    booked = Usage(seen.output_tokens, int(seen.explained["prompt_tokens"]))
    if seen.client.usage != want:
        return off(f"the client got {seen.client.usage}, the engine said {want}")
    return OK if booked == want else off(f"booked {booked}, the engine said {want}")


async def tpot(bench: Bench) -> Cell:
    """Time between the first and the last token, by the tokens after the first."""
    before = await bench.generated()
    seen = await bench.ask(bench.body())
    if failed := _failed(seen):
        return failed
    assert seen.engine is not None
    count, exact = await _true_tokens(bench, seen.engine, before)
    if len(seen.engine.texts) < 2 or count < 2:
        return skipped("the reply came in one piece")
    span_s = seen.engine.texts[-1].at_s - seen.engine.texts[0].at_s
    want_s, got_s = span_s / (count - 1), seen.actual_s("tpot_ms")
    if isnan(got_s) and not exact:
        return skipped("tokens are estimated, so there is no TPOT")
    near = _near(got_s, want_s, SLACK_S / (count - 1))
    return OK if near else off(f"{got_s * 1e3:.2f} ms, true {want_s * 1e3:.2f} ms")


async def error_first(bench: Bench) -> Cell:
    """An error before the first token is an error status, never a stream, and books no token."""
    if bench.under_test.adapter:
        return await _unloaded(bench)
    refusal = bench.under_test.error_first
    if refusal is None:
        return skipped("nothing makes the engine refuse a request")
    body = bench.body(refusal.prompt) | refusal.asked
    async with bench.crowded(full=True):
        plain = await bench.straight(body)
    if plain.status == 200 and not (plain.error or plain.cut):
        return skipped("the engine serves it")
    blamed = await _blamed(bench)
    seen = await bench.ask(body, full=True)
    status = seen.client.status
    right = status == plain.status if refusal.clients_fault else status >= 400
    if not right:
        return off(f"status {status}, the engine's own {plain.status} {plain.error}")
    if bench.under_test.crowd and await _blamed(bench) > blamed:
        return off("the engine is blamed for that it is full")
    return _nothing_booked(seen)


def _nothing_booked(seen: Seen) -> Cell:
    if seen.explained and (seen.output_tokens or not isnan(seen.actual_s("ttft_ms"))):
        return off(f"{seen.output_tokens} tokens and a TTFT of {seen.actual_s('ttft_ms'):.3f} s booked for an error")
    return OK


async def _blamed(bench: Bench) -> float:
    """Failed attempts that count as the engine's fault."""
    return await bench.at_gateway("headroom_backend_failures_total", backend=bench.under_test.name, kind="fault")


async def _unloaded(bench: Bench) -> Cell:
    """A model that the engine has unloaded is unknown, until it is loaded again."""
    await bench.unload_adapter()
    try:
        seen = await bench.ask(bench.body())
    finally:
        await bench.load_adapter()
    if seen.client.status != 404:
        return off(f"status {seen.client.status} for an adapter that was unloaded")
    return _nothing_booked(seen)


async def error_mid_stream(bench: Bench) -> Cell:
    """A stream that breaks ends with an error event, never as if it were whole, and is booked as broken."""
    prompt = bench.under_test.error_mid
    if not prompt:
        bench.relay.cut = _killing(bench) if bench.under_test.kills else lambda exchange: _has_begun(bench, exchange)
    try:
        seen = await bench.ask(bench.body(*([prompt] if prompt else []), tokens=_tokens_mid(bench)))
    finally:
        bench.relay.cut = None
        if bench.under_test.kills:
            await bench.start_again()
    if seen.client.status != 200:
        return off(f"status {seen.client.status} for a reply that had begun")
    if seen.client.ended_clean or not seen.client.error:
        return off(f"the client's stream ends as {seen.body[-120:]!r}")
    outcome = seen.explained.get("outcome")
    if outcome != "broken":
        return off(f"booked as {outcome}")
    return await _serves_again(bench) if bench.under_test.kills else OK


def _tokens_mid(bench: Bench) -> int:
    """Enough that the reply is not over before a process has been killed."""
    return bench.under_test.long_tokens if bench.under_test.kills else TOKENS


def _has_begun(bench: Bench, exchange: Exchange) -> bool:
    if exchange.target.partition("?")[0] != bench.engine_path:
        return False
    return len(exchange.read(bench.engine_dialect).texts) >= BEGUN_AFTER


def _killing(bench: Bench) -> Cut:
    """Kills the engine's process once where the connection would be cut, and leaves the connection to the engine."""
    killed: list[Exchange] = []

    def cut(exchange: Exchange) -> bool:
        if not killed and _has_begun(bench, exchange):
            killed.append(exchange)
            bench.kill()
        return False

    return cut


async def _serves_again(bench: Bench) -> Cell:
    """An engine that was started again gets requests."""
    return _failed(await bench.ask(bench.body())) or OK


async def cancel(bench: Bench) -> Cell:
    """A client that leaves frees the engine, and what it had is in the books."""
    if bench.under_test.crowd:
        return await _cancel_waiting(bench)
    before = await bench.generated()
    seen = await bench.ask(bench.body(tokens=bench.under_test.long_tokens), leaves_after=LEAVES_AFTER)
    outcome = seen.explained.get("outcome")
    if outcome == "served":
        return skipped("the reply was over before the client could leave")
    if outcome != "left" or seen.exchange is None:
        return off(f"booked as {outcome}")
    exchange = seen.exchange

    async def closed() -> bool:
        return exchange.closed_s is not None

    if not await within(closed):
        return off("the connection to the engine stays open for a client that left")
    freed = await within(bench.idle)
    generated = 0 if before is None else int(await _more(bench, before))  # a frame may have several tokens
    if wrong := _left_unbooked(bench, seen, exchange, generated):
        return off(wrong)
    return OK if freed else skipped("the connection is closed, and the engine generates on all the same")


async def _cancel_waiting(bench: Bench) -> Cell:
    """A client that leaves while its request waits in the engine's queue: the engine drops it."""
    seen = await bench.leave_waiting(bench.body())
    outcome = seen.explained.get("outcome")
    return _nothing_booked(seen) if outcome == "left" else off(f"booked as {outcome}")


def _left_unbooked(bench: Bench, seen: Seen, exchange: Exchange, generated: int) -> str:
    """What the books lack of a reply whose client left; empty when nothing."""
    passed = exchange.read(bench.engine_dialect)
    most = max(len(passed.texts), passed.usage.output if passed.usage else 0, generated)
    slack = max(1.0, ESTIMATE_SHARE * most) if seen.explained["output_tokens_estimated"] else 1.0
    if not LEAVES_AFTER <= seen.output_tokens <= max(most, LEAVES_AFTER) + slack:
        return f"{seen.output_tokens} booked, the client had {len(seen.client.texts)} frames, {most} generated"
    return "no TTFT booked" if isnan(seen.actual_s("ttft_ms")) else ""


async def metrics(bench: Bench) -> Cell:
    """The gateway's sums are those of its requests; its gauge of the engine is the engine's own."""
    before = await _booked(bench)
    counted = await bench.generated()
    seen = [await bench.ask(bench.body()) for _ in range(3)]
    if failed := next((cell for each in seen if (cell := _failed(each))), None):
        return failed
    booked, sum_of_requests = await _booked(bench) - before, sum(each.output_tokens for each in seen)
    if booked != sum_of_requests:
        return off(f"headroom_tokens_total rose by {booked:.0f}, its requests had {sum_of_requests}")
    if counted is not None and not await within(lambda: _rose_by(bench, counted, booked)):
        return off(f"headroom_tokens_total rose by {booked:.0f}, the engine's by {await _more(bench, counted):.0f}")
    if await bench.at_gateway("headroom_requests_in_flight"):
        return off("headroom_requests_in_flight is not 0")
    return await _gauge(bench)


async def _rose_by(bench: Bench, before: float, booked: float) -> bool:
    return await _more(bench, before) == booked


async def _booked(bench: Bench) -> float:
    return await bench.at_gateway("headroom_tokens_total", kind="output", backend=bench.under_test.name)


async def _gauge(bench: Bench) -> Cell:
    """Back to 0 once nothing runs."""
    if await bench.running() is None:
        return OK

    async def idle() -> bool:
        return not await bench.at_gateway("headroom_engine_running", backend=bench.under_test.name)

    return OK if await within(idle) else off("headroom_engine_running stays above 0 while the engine is idle")


CHECKS: dict[str, Check] = {
    "first token": first_token,
    "tokens": tokens,
    "usage": usage,
    "TPOT": tpot,
    "error first": error_first,
    "error mid-stream": error_mid_stream,
    "cancel": cancel,
    "metrics": metrics,
}


async def fill(bench: Bench) -> dict[str, Cell]:
    """Every cell of a row."""
    wanted = bench.under_test.columns or tuple(CHECKS)
    found = {column: await _measured(check, bench) for column, check in CHECKS.items() if column in wanted}
    return {column: found.get(column, OF_OTHERS) for column in CHECKS}


async def _measured(check: Check, bench: Bench) -> Cell:
    for _ in range(TRIES - 1):
        if not (cell := await _cell(check, bench)).off:
            return cell
    return await _cell(check, bench)


async def _cell(check: Check, bench: Bench) -> Cell:
    try:
        return await check(bench)
    except BenchError as error:
        return off(str(error))
