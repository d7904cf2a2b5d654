"""How many bytes this process holds for requests in all, and their bound. Must not depend on sockets."""

from typing import Final

from router.gateway.protocols.answers import Problem

BUFFERED_BYTES_MAX: Final = 2**30


class Buffers:
    """``bodies``: of requests, counted as they come and go; ``unsent`` and ``held_back``: of replies, as the last sweep
    found them: each is bounded by itself, and back-pressure keeps it so.
    """

    __slots__ = ("bodies", "bytes_max", "held_back", "unsent")

    def __init__(self, bytes_max: int = BUFFERED_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bodies = self.unsent = self.held_back = 0

    @property
    def held(self) -> int:
        """All of them."""
        return self.bodies + self.unsent + self.held_back

    def problem(self, more: int) -> Problem | None:
        """Why so many more bytes of a body cannot be taken, if so: never, or not now."""
        if more > self.bytes_max:
            return Problem(413, f"the body is over {self.bytes_max} bytes, which is all that this router may hold")
        if self.held + more > self.bytes_max:
            return Problem(
                503, f"this router holds {self.held} bytes of {self.bytes_max} it may", fields=b"retry-after: 1\r\n"
            )
        return None
