"""Takes a new config while the old one serves: build, validate, swap one reference; or keep the old one and say why.

Must not depend on what is in a plan. A reload is triggered by a change of the config file or of a policy file or a
certificate it names, by SIGHUP or by a call. Reloads, rollbacks and verdicts on canaries run one at a time, each with
its own result.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any, Final, Protocol

from watchfiles import awatch

from router.config import references, settings
from router.config.text import Document, document, read
from router.core.errors import ConfigError, NotValidated
from router.gateway.config.plan import Plan, make
from router.gateway.config.policy_spec import key
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.offered import accepted
from router.gateway.rollout.validation import NOT_RUN, UNNEEDED, Validation, lines, validate
from router.gateway.rollout.versions import Version, Versions
from router.gateway.tls import paths

_log = logging.getLogger("headroom")

FIXED_SECTIONS: Final = ("listen", "upstream", "state", "record")
LOOK_MS: Final = 1_000  # how often the files are read where the file system reports no changes
SWITCH_S: Final = 0.0005  # switch interval while a thread reads a config, so that the event loop gets its turn


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The result of a reload. ``version``: the config that serves now, new or old; ``error``: why it was refused;
    ``why``: why it was changed, where nobody did: the verdict on a canary, the faults of a policy.
    """

    ok: bool
    version: str
    origin: str
    at_s: float
    error: str = ""
    validation: Validation = UNNEEDED
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reloading:
    """A config that is being read, checked or validated: since when, what is done now, and how much of it (0 to 1)."""

    origin: str
    since_s: float
    doing: str = "reading the config"
    share: float = 0.0


class ReloadObserver(Protocol):
    """Counts reloads and validations."""

    def reloaded(self, ok: bool, version: str, at_s: float) -> None:
        """A config was taken (*ok*) or refused."""

    def validated(self, result: str, took_s: float, replays: tuple[Mapping[str, Any], ...]) -> None:
        """Policies were validated."""


class Reloader:
    """Holds the running plan and replaces it."""

    def __init__(
        self,
        path: Path,
        running: Plan,
        swap: Callable[[Plan, Plan | None], Awaitable[None]],
        observer: ReloadObserver,
        audit: Audit,
        leads: Callable[[], bool] = lambda: True,
        record: Path | None = None,
        stores: bool = True,
    ) -> None:
        """``swap`` makes a plan the running one, with the routing of the last good one where its own fails; it must not
        fail for a plan that could be made. ``leads``: whether this worker is the one that takes a changed file;
        ``record``: the file this worker records to, if not the config's. ``stores``: whether versions go to the
        config's history_dir; one process in a folder does.
        """
        self.path = path
        self.running = running
        self.complete: Callable[[Plan], Plan] = lambda plan: plan  # with the backends that were discovered by now
        self.last = Reloaded(True, running.version, "start", time())
        self.reloading: Reloading | None = None
        history = running.settings.reload
        self.versions = Versions(history.history_max, history.history_dir if stores else None)
        self._swap, self._observer, self._audit = swap, observer, audit
        self._leads, self._record = leads, record
        self._files = named_files(running.settings, path) + referenced_files(document(running.text, str(path)))
        self._seen = self._texts()  # the texts of the last attempt
        self._decided: dict[str, str] = {}  # outcomes of canary trials
        self._completions_due = self._completions_done = 0  # calls of ``completed``, and those whose finds serve
        self._one_at_a_time = asyncio.Lock()  # attempts at another config
        self._swapping = asyncio.Lock()  # the running plan is read, changed and written
        self._closed = False
        audit.file = running.settings.reload.audit_file
        self._keep(running, "start", UNNEEDED)
        observer.reloaded(True, running.version, self.last.at_s)

    # -- ways to another config --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the first config the running one; what is discovered meanwhile waits for it."""
        async with self._swapping:
            await self._swap(self.running, None)

    async def close(self) -> None:
        """No plan becomes the running one from now on; a swap that is under way ends first, for it begins what the
        gateway is about to end.
        """
        if not self._closed:
            self._closed = True
            await self._swapping.acquire()

    async def reload(self, origin: str, *, forced: bool = False) -> Reloaded:
        """Take the file as it is now, whole or not at all. *forced*: whatever SLO attainment its policies lose in the
        replay; an entry of the audit log states it.
        """
        async with self._one_at_a_time:
            outcome = await self._try(origin, lambda: self._offered(forced))
            if forced and outcome.ok:
                why = f"a drop of SLO attainment was allowed by force ({origin})"
                self._audit.note("forced", version=outcome.version, why=why, validation=asdict(outcome.validation))
                _log.warning("config %s: %s", outcome.version, why)
            return outcome

    async def rollback(self, to: str | None, origin: str) -> Reloaded:
        """Go back to a version that served: *to*, or the last good one. It is not validated again."""
        async with self._one_at_a_time:
            left = self.running.version
            outcome = await self._try(origin, lambda: self._earlier(to))
            if outcome.ok:
                self.versions.blame(left, f"rolled back ({origin})")
            return outcome

    async def follow(self, version: Version, bad: Mapping[str, str]) -> Plan:
        """Take the version that another worker took, from the texts that were validated there; *bad*: its bad versions.

        Returns the plan that serves then: the one that served before, if the version cannot be taken here.
        """
        async with self._one_at_a_time:
            for name, why in bad.items():
                self.versions.blame(name, why)
            self._seen = self._texts()
            await self._try(version.origin, lambda: (self._followed(version), UNNEEDED))
            return self.running

    async def completed(self, swap: Callable[[Plan], Awaitable[None]]) -> None:
        """Serve with the backends that were discovered since; *swap* takes them. The config stays the same version.

        A config that is being validated delays it by nothing: that one is completed again before it serves. Calls that
        come while another swaps are one: a thousand engines that answer within a second are not a thousand swaps.
        """
        self._completions_due += 1
        own = self._completions_due
        async with self._swapping:
            if self._completions_done >= own:
                return
            taken = self._completions_due
            plan = await asyncio.to_thread(self.complete, self.running)  # the event loop goes on serving streams
            if plan is not self.running:
                await swap(plan)
                self.running = plan
            self._completions_done = taken

    async def judged(self, plan: Plan, verdict: str, role: str, why: str) -> None:
        """React to a policy dropped for its faults, or to the end of a canary's trial; ignored for an old plan."""
        async with self._one_at_a_time:
            if plan.version != self.running.version:
                return
            self._audit.note(verdict, role=role, version=plan.version, why=why)
            if role == "canary":
                outcome = "promoted" if verdict == "promoted" else "returned"
                self._decided[_trial(plan)] = outcome
                await self._changed_by_itself(f"canary {outcome}", why, lambda: (settled(plan, outcome), UNNEEDED))
            elif role == "serving":
                self.versions.blame(plan.version, why)
                await self._changed_by_itself(
                    "rolled back for its faults", f"the serving policy is dropped: {why}", lambda: self._earlier(None)
                )

    async def _changed_by_itself(self, what: str, why: str, offer: Callable[[], tuple[Plan, Validation]]) -> None:
        _log.warning("config %s: %s: %s", self.running.version, what, why)
        outcome = await self._try(what, offer)
        if not outcome.ok:
            why += "; the last good policy, else least_request, decides until another config is taken"
            _log.error("config %s: %s", self.running.version, why)
        self.last = replace(self.last, why=why)

    async def _try(self, origin: str, offer: Callable[[], tuple[Plan, Validation]]) -> Reloaded:
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        _log.info("config read (%s): it serves once it is checked, and validated if decisions change", origin)
        self.reloading = Reloading(origin, time())
        try:
            plan, validation = await asyncio.to_thread(offer)  # in a thread: the event loop goes on serving streams
        except ConfigError as error:
            return self._refused(origin, error)
        except Exception as fault:  # a config that breaks its reading must end neither the watch nor the router
            _log.exception("config refused (%s): reading it failed", origin)
            return self._refused(
                origin, ConfigError([f"{self.path}: cannot be taken: {type(fault).__name__}: {fault}"])
            )
        finally:
            sys.setswitchinterval(usual_s)
            self.reloading = None
        async with self._swapping:
            plan = await asyncio.to_thread(self.complete, plan)
            await self._swap(plan, self._last_good(plan))
            self.running = plan
        self.last = Reloaded(True, plan.version, origin, time(), validation=validation)
        self._keep(plan, origin, validation)
        _log.info("config %s serves (%s)%s", plan.version, origin, "".join(f"; {line}" for line in lines(validation)))
        return self._report()

    def _on_progress(self, doing: str, share: float) -> None:
        """Called in a thread of the validation."""
        before = self.reloading
        if before is None:
            return
        self.reloading = replace(before, doing=doing, share=share)
        if doing != before.doing:
            _log.info("validation (%s), %.0f %% done: %s", before.origin, 100 * share, doing)

    def _refused(self, origin: str, error: ConfigError) -> Reloaded:
        validation = error.validation if isinstance(error, NotValidated) else NOT_RUN
        self.last = Reloaded(False, self.running.version, origin, time(), str(error), validation)
        self._audit.note("refused", origin=origin, serving=self.running.version, why=str(error))
        _log.error("config refused (%s), %s goes on serving:\n%s", origin, self.running.version, error)
        return self._report()

    def _report(self) -> Reloaded:
        last = self.last
        self._observer.reloaded(last.ok, last.version, last.at_s)
        if last.validation not in (UNNEEDED, NOT_RUN):
            self._observer.validated(last.validation.result, last.validation.took_s, last.validation.replays)
        return last

    # -- sources of a plan -----------------------------------------------------------------------------------

    def _offered(self, forced: bool) -> tuple[Plan, Validation]:
        """The file's plan. Runs in a thread."""
        self._seen = self._texts()
        text = read(self.path)
        referenced = referenced_files(text)
        self._files = tuple({*self._files, *referenced})  # one that is missing yet is waited for
        parsed = text.parse(settings.Settings)
        self._files = named_files(parsed, self.path) + referenced
        self._seen = self._texts()
        plan = self.complete(make(parsed, text).sharing(self.running))
        _check_swappable(self.running, plan)
        plan = settled(plan, self._decided[_trial(plan)]) if _trial(plan) in self._decided else plan
        own = None if plan.settings.reload.validation.trace else self._record
        own = own if own is not None and own.exists() else None
        return accepted(plan, validate(plan, self.running, own, forced=forced, on_progress=self._on_progress))

    def _followed(self, version: Version) -> Plan:
        plan, outcome = remade(version, self.path)
        if outcome:
            self._decided[_trial(plan)] = outcome
        return settled(plan, outcome)

    def _earlier(self, to: str | None) -> tuple[Plan, Validation]:
        version = self.versions.find(to) if to else self.versions.before(self.running.version)
        if version is None:
            raise ConfigError(["there is no earlier good version to go back to"])
        plan, outcome = (version.plan.recertified(self.path), "") if version.plan else remade(version, self.path)
        plan = settled(plan, outcome or "returned")
        _check_swappable(self.running, plan)
        return plan, UNNEEDED

    def _keep(self, plan: Plan, origin: str, validation: Validation) -> None:
        sources = {path: source.text for path, source in plan.sources.items()}
        self.versions.add(Version(plan.version, time(), origin, plan.text, sources, asdict(validation), plan=plan))
        self._audit.file = plan.settings.reload.audit_file
        self._audit.note("serves", version=plan.version, origin=origin, validation=asdict(validation))

    def _last_good(self, plan: Plan) -> Plan | None:
        """The plan of the newest good version whose routing differs from the plan's; None when there is none."""
        own = key(plan.chosen["routing"].plain())
        for version in self.versions:
            earlier: Plan | None = version.plan
            if earlier is not None and not version.bad and key(earlier.chosen["routing"].plain()) != own:
                return earlier
        return None

    # -- the files ---------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Reload whenever the content of the file, or of one that it names, changes. Runs until cancelled.

        The folders are watched, not the files: editors and ConfigMaps put another file in its place. Where the file
        system reports no changes, or cannot be watched, the files are read every second.
        """
        folders = {self.path.resolve().parent, self.path.parent, *(file.parent for file in self._files)}
        async for _ in _looks(folders):
            if self._changed() and self._leads():
                await self.reload("file changed")

    def _changed(self) -> bool:
        """Whether there is a new text to take. A file that is missing does not prevent a new config."""
        now = self._texts()
        changed = [path for path, text in now.items() if text != self._seen.get(path)]
        replaced = any(now[path] is None for path in changed)  # an editor puts another file in its place
        return bool(changed) and (not replaced or (self.path in changed and now[self.path] is not None))

    def _texts(self) -> dict[Path, bytes | None]:
        """By file, the digest of its content: keys of certificates are not kept in memory."""
        return {path: _digest(path) for path in (self.path, *self._files)}


def named_files(parsed: settings.Settings, path: Path) -> tuple[Path, ...]:
    """The policy files, profile, file of API keys, certificates and their keys that a config at *path* names."""
    given = parsed.policy
    roles = [given.routing, given.admission, *(each.routing for each in (given.shadow, given.canary) if each)]
    files = [*(own.file for own in roles), parsed.profile, parsed.key_file]
    return tuple(path.parent / file for file in files if file is not None) + paths(parsed, path.parent)


def referenced_files(text: Document) -> tuple[Path, ...]:
    """The files whose content stands in a config for a reference to them."""
    return tuple(references.files(text.data, Path(text.name).parent))


def remade(version: Version, path: Path) -> tuple[Plan, str]:
    """The plan of a version's text, and how its canary's trial had ended ("" if it had not). Raises ConfigError."""
    plan = replace(version, plan=None).made(path)
    outcome = version.version.rpartition("-")[2]
    return plan, outcome if outcome in OUTCOMES else ""


OUTCOMES: Final = ("promoted", "returned")  # of a canary's trial, at the end of the name of a version


def settled(plan: Plan, outcome: str) -> Plan:
    """The plan with its canary's trial over: ``promoted`` to serve all, or ``returned``; with no outcome as it is."""
    policy = plan.settings.policy
    if policy.canary is None or not outcome:
        return plan
    chosen = {role: each for role, each in plan.chosen.items() if role != "canary"}
    changed: dict[str, Any] = {"canary": None}
    routing = plan.routing
    if outcome == "promoted":
        assert plan.canary is not None  # its section is there
        changed["routing"], chosen["routing"], routing = policy.canary.routing, plan.chosen["canary"], plan.canary
    parsed = plan.settings.model_copy(update={"policy": policy.model_copy(update=changed)})
    version = f"{plan.version}-{outcome}"
    return replace(plan, settings=parsed, routing=routing, canary=None, chosen=chosen, version=version)


def _trial(plan: Plan) -> str:
    """A key for a trial: its two policies and its settings; empty for a plan without one."""
    trial = plan.settings.policy.canary
    if trial is None:
        return ""
    return key(plan.chosen["canary"].plain(), plan.chosen["routing"].plain(), trial.model_dump(mode="json"))


async def _looks(folders: Collection[Path]) -> AsyncIterator[None]:
    """Yields at each change in the folders, and every second."""
    try:
        async for _ in awatch(
            *folders, debounce=200, step=50, recursive=False, rust_timeout=LOOK_MS, yield_on_timeout=True
        ):
            yield
    except (OSError, RuntimeError) as problem:  # no more watches to be had, a folder that went
        _log.warning("config: its folder cannot be watched (%s); the files are read every second instead", problem)
    while True:
        await asyncio.sleep(LOOK_MS / 1e3)
        yield


def _digest(path: Path) -> bytes | None:
    """The digest of the file's content; None while it is being replaced, or where no file can have that name."""
    try:
        return sha256(path.read_bytes()).digest()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None


def _check_swappable(running: Plan, new: Plan) -> None:
    """Refuse a change to sections whose sockets, stores and files are open."""
    changed = [name for name in FIXED_SECTIONS if getattr(running.settings, name) != getattr(new.settings, name)]
    if changed:
        raise ConfigError([f"{name}: cannot change while running; restart to change it" for name in changed])
