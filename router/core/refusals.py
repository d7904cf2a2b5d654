"""What backends refuse to serve for now: a model that one has not loaded, a path that its server lacks, a refused key.

No fault of the whole backend: it goes on serving the rest, and after a bounded time it is tried for this again. Must
not depend on requests, nor on how a refusal was worded.
"""

from dataclasses import dataclass

from router.core.roster import Roster


@dataclass(frozen=True, slots=True)
class Refusal:
    """``what``: a model or an endpoint; ``until_s``: when the backend is tried for it again."""

    backend: str
    what: str
    why: str
    since_s: float
    until_s: float


class Refusals:
    """Those that stand, by the subject of their timer. The roster keeps them by slot, for choosing."""

    __slots__ = ("_roster", "_standing")

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._standing: dict[str, Refusal] = {}

    def add(self, refusal: Refusal) -> str:
        """A backend refused; the subject for a timer at ``until_s``. Empty: that was known, or the backend has left."""
        subject = f"{refusal.backend}\n{refusal.what}"
        slot = self._roster.slot(refusal.backend)
        if slot is None or subject in self._standing:
            return ""
        self._standing[subject] = refusal
        self._roster.refuse(slot, refusal.what)
        return subject

    def over(self, subject: str) -> None:
        """The backend is tried again for what it refused."""
        refusal = self._standing.pop(subject, None)
        slot = self._roster.slot(refusal.backend) if refusal is not None else None
        if refusal is not None and slot is not None:
            self._roster.offer(slot, refusal.what)

    def offered(self, refusal: Refusal) -> None:
        """The backend says by itself that it serves again what it refused."""
        self.over(f"{refusal.backend}\n{refusal.what}")

    def served(self, backend: str, model: str, endpoint: str) -> None:
        """A backend has begun to answer a request: it refuses neither."""
        if self._standing:
            self.over(f"{backend}\n{model}")
            self.over(f"{backend}\n{endpoint}")

    def forget(self, backend: str) -> None:
        """The backend leaves, was restarted or was described anew."""
        for refusal in self.of(backend):
            self.over(f"{backend}\n{refusal.what}")

    def of(self, backend: str) -> tuple[Refusal, ...]:
        """What one backend refuses."""
        return tuple(each for each in self._standing.values() if each.backend == backend)
