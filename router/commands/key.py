"""The command ``key``: a new API key, or the digest of one, as an entry for a config or its key file."""

import getpass
import secrets
import sys
from argparse import Namespace
from typing import Final

import yaml

from router.arguments import Stop
from router.gateway.config.keys import digest

_BYTES: Final = 32
_PREFIX: Final = "hr-"  # what scanners of repositories and logs can find
_CHARS_MIN: Final = 20


def run(options: Namespace) -> None:
    """Print the entry on stdout, and a new key on stderr: it is stored nowhere."""
    key = _given() if options.hash else _PREFIX + secrets.token_urlsafe(_BYTES)
    entry = {"sha256": digest(key), "tenant": options.tenant}
    if options.slo_class:
        entry["slo_class"] = options.slo_class
    if not options.hash:
        sys.stderr.write(
            f"{key}\nGive it to the client: it is shown this once. The entry for `api_keys` or `key_file`:\n"
        )
    sys.stdout.write(f"- {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000)}")


def _given() -> str:
    """The key, from the terminal without an echo, or from a pipe: as an argument others would see it."""
    key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline()
    key = key.rstrip("\r\n")
    if len(key) < _CHARS_MIN:
        raise Stop(
            f"the key has {len(key)} characters, which can be guessed from its hash: give at least {_CHARS_MIN}, or "
            "leave --hash out to have one made"
        )
    return key
