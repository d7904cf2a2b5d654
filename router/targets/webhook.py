"""A target that acts: each change of the advice is posted as JSON to a URL, whose owner starts and stops replicas.

The receiver gets the wanted number and no difference, so a post that arrives twice does no harm; ``idempotency_key`` is
the same in all attempts at one change. A signature has the time at which it was made, so that a post that somebody
recorded is refused later. Must not depend on what stands behind the URL.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from time import time
from typing import Annotated, Final
from uuid import uuid4

import httpx
from pydantic import AfterValidator, Field

from router.targets.target import Advice, Applied, Outcome, Target, TargetSpec
from router.urls import http_url, shown_url

_log = logging.getLogger("headroom")


class WebhookSpec(TargetSpec):
    """``url``: where to post; ``token_env``: the environment variable with a bearer token; ``secret_env``: with the key
    of the signature, left out: posts are not signed; ``timeout_s``: for one post.
    """

    url: Annotated[str, AfterValidator(http_url)]
    token_env: Annotated[str, Field(min_length=1)] | None = None
    secret_env: Annotated[str, Field(min_length=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0

    def make(self, environment: Mapping[str, str]) -> Target:
        """Raises ValueError when the variable of the token or of the secret is not set."""
        token, secret = (_from(environment, name) if name else "" for name in (self.token_env, self.secret_env))
        return Webhook(self, token, secret)


def _from(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ValueError(f"environment variable {name} is not set")
    return environment[name]


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The value of the header ``headroom-signature``: the time, and the HMAC-SHA256 of ``TIME.BODY`` in hex."""
    digest = hmac.new(secret.encode(), b"%d.%b" % (at_s, body), sha256).hexdigest()
    return f"t={at_s},v1={digest}"


@dataclass(slots=True)
class _Change:
    """The last change of the advice for one model and variant, and whether it is applied."""

    replicas: int
    key: str
    applied: bool = False


class Webhook(Target):
    """Posts changes; a failed one again whenever it is applied again, for as long as it is advised."""

    def __init__(self, spec: WebhookSpec, token: str, secret: str = "", clock: Callable[[], float] = time) -> None:
        """*token*: sent as bearer token unless empty; *secret*: posts are signed with it unless empty."""
        self._spec, self._secret, self._clock = spec, secret, clock
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(timeout=spec.timeout_s, trust_env=False, headers=headers)
        self._changes: dict[tuple[str, str], _Change] = {}

    async def apply(self, advice: Advice) -> Applied:
        """Post the advice if it changed, or if the last post of it failed."""
        change = self._change(advice)
        if change.applied:
            return Applied(Outcome.UNCHANGED, "posted before")
        fault = await self._post(advice, change.key)
        change.applied = not fault
        if fault:
            return Applied(Outcome.FAILED, fault)
        _log.info("posted %s: %d x %s (now %d)", advice.model, advice.replicas, advice.variant, advice.running)
        return Applied(Outcome.APPLIED, "posted")

    async def stand_by(self, decided: Sequence[Advice] | None, age_s: float) -> None:
        """The receiver may have got other numbers since: the first one of the next term is posted, whatever it is."""
        self._changes.clear()

    def _change(self, advice: Advice) -> _Change:
        """The change that this advice is of: the last one, or a new one."""
        place = advice.model, advice.variant
        change = self._changes.get(place)
        if change is None or change.replicas != advice.replicas:
            change = self._changes[place] = _Change(advice.replicas, uuid4().hex)
        return change

    async def _post(self, advice: Advice, key: str) -> str:
        """One attempt; what went wrong, or an empty text. Only the status of the answer is read."""
        url, shown = self._spec.url, shown_url(self._spec.url)
        body = json.dumps({**asdict(advice), "idempotency_key": key}).encode()
        headers = {"idempotency-key": key, "content-type": "application/json"}
        if self._secret:
            headers["headroom-signature"] = signature(self._secret, int(self._clock()), body)
        try:
            async with (
                asyncio.timeout(self._spec.timeout_s),  # httpx bounds each read, and so no answer that drips
                self._client.stream("POST", url, content=body, headers=headers) as answer,
            ):
                return "" if answer.is_success else f"{shown} answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return f"{shown}: {type(error).__name__}: {error}".rstrip(": ")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


SPEC: Final = WebhookSpec
