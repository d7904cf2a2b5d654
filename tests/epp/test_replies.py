"""What a proxy is sent of a reply."""

from typing import Any

from router.gateway.epp.replies import ProxyReplies


def sent(replies: ProxyReplies) -> list[Any]:
    """The pieces of the body that wait to be written, in order."""
    return [message.response_body.response.body_mutation.streamed_response for message in replies.waiting]


def test_pieces_that_have_not_been_written_are_one_message() -> None:
    """However many tokens came meanwhile: a message costs as much as what is in it; a head stays by itself."""
    wakes: list[None] = []
    replies = ProxyReplies(lambda: wakes.append(None))
    replies.head(b"")
    for data in (b"a", b"b", b"c"):
        replies.body(data)
    assert len(wakes) == 4
    assert replies.waiting.popleft().HasField("response_headers")
    assert [(piece.body, piece.end_of_stream) for piece in sent(replies)] == [(b"abc", False)]
    replies.waiting.clear()
    replies.body(b"d")
    replies.end()
    assert [(piece.body, piece.end_of_stream) for piece in sent(replies)] == [(b"d", True)]


def test_no_message_is_longer_than_the_protocol_recommends() -> None:
    """Whatever waits."""
    replies, data = ProxyReplies(lambda: None), bytes(range(256)) * 100
    for _ in range(7):
        replies.body(data)
    replies.body(data * 9)
    assert b"".join(piece.body for piece in sent(replies)) == data * 16
    assert max(len(piece.body) for piece in sent(replies)) <= 64 * 1024
