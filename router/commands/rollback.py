"""The command ``rollback``: a running gateway returns to a config that served before."""

import sys
from argparse import Namespace

import httpx

from router.arguments import Stop


def run(options: Namespace) -> None:
    """Ask the gateway, print which version serves."""
    url = options.url
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    params = {"to": options.to} if options.to else {}
    try:
        answer = httpx.post(f"{url}/admin/rollback", params=params, headers=headers, timeout=30.0, trust_env=False)
    except httpx.HTTPError as error:
        raise Stop(f"{url} does not answer: {error}") from None
    try:
        body = answer.json()
        said = body["version"] if answer.is_success else body["error"]
    except (ValueError, LookupError, TypeError):
        raise Stop(f"{url} answered {answer.status_code} and is no Headroom gateway") from None
    if not answer.is_success:
        raise Stop(said if isinstance(said, str) else answer.text)
    sys.stdout.write(f"{url}: version {said} serves\n")
