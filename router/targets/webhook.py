"""A target that acts: each change of the advice is posted as JSON to a URL, whose owner starts and stops replicas.

The receiver gets the wanted number and no difference, so a post that arrives twice does no harm; ``idempotency_key`` is
the same in all attempts at one change. Must not depend on what stands behind the URL.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Final
from uuid import uuid4

import httpx
from pydantic import AfterValidator, Field

from router.targets.target import Advice, Applied, Outcome, Target, TargetSpec
from router.urls import http_url

_log = logging.getLogger("headroom")


class WebhookSpec(TargetSpec):
    """``url``: where to post; ``token_env``: the environment variable with a bearer token; ``timeout_s``: for one post;
    ``attempts_max``: posts of one change before it is given up until the advice changes.
    """

    url: Annotated[str, AfterValidator(http_url)]
    token_env: Annotated[str, Field(min_length=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    attempts_max: Annotated[int, Field(gt=0)] = 5

    def make(self, environment: Mapping[str, str]) -> Target:
        """Raises ValueError when the token's variable is not set."""
        token = environment.get(self.token_env, "") if self.token_env else ""
        if self.token_env and not token:
            raise ValueError(f"environment variable {self.token_env} is not set")
        return Webhook(self, token)


@dataclass(slots=True)
class _Change:
    """The last change of the advice for one model and variant, and how far it is applied."""

    replicas: int
    key: str
    attempts: int = 0
    applied: bool = False


class Webhook(Target):
    """Posts changes, and a failed one again in the next rounds."""

    def __init__(self, spec: WebhookSpec, token: str) -> None:
        """*token*: sent as bearer token unless empty."""
        self._spec = spec
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(timeout=spec.timeout_s, trust_env=False, headers=headers)
        self._changes: dict[tuple[str, str], _Change] = {}

    async def apply(self, advice: Advice) -> Applied:
        """Post the advice if it changed, or if the last post of it failed and attempts are left."""
        change = self._change(advice)
        if change.applied:
            return Applied(Outcome.UNCHANGED, "posted before")
        if change.attempts >= self._spec.attempts_max:
            return Applied(Outcome.UNCHANGED, f"given up after {change.attempts} attempts")
        change.attempts += 1
        fault = await self._post(advice, change.key)
        change.applied = not fault
        if fault:
            last = change.attempts == self._spec.attempts_max
            more = "given up until the advice changes" if last else "again in the next round"
            return Applied(Outcome.FAILED, f"{fault}, attempt {change.attempts} of {self._spec.attempts_max}; {more}")
        _log.info("posted %s: %d x %s (now %d)", advice.model, advice.replicas, advice.variant, advice.running)
        return Applied(Outcome.APPLIED, "posted")

    def _change(self, advice: Advice) -> _Change:
        """The change that this advice is of: the last one, or a new one."""
        place = advice.model, advice.variant
        change = self._changes.get(place)
        if change is None or change.replicas != advice.replicas:
            change = self._changes[place] = _Change(advice.replicas, uuid4().hex)
        return change

    async def _post(self, advice: Advice, key: str) -> str:
        """One attempt; what went wrong, or an empty text. Only the status of the answer is read."""
        url, body = self._spec.url, {**asdict(advice), "idempotency_key": key}
        try:
            async with (
                asyncio.timeout(self._spec.timeout_s),  # httpx bounds each read, and so no answer that drips
                self._client.stream("POST", url, json=body, headers={"idempotency-key": key}) as answer,
            ):
                return "" if answer.is_success else f"{url} answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return f"{url}: {type(error).__name__}: {error}".rstrip(": ")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


SPEC: Final = WebhookSpec
