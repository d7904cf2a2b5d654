"""The command ``import``: a config of another router as a router.yaml."""

import sys
from argparse import Namespace

from router.arguments import Stop
from router.commands.shared import config_faults
from router.importing.conversion import convert
from router.importing.registry import find

_BYTES_MOST = 4 << 20


def run(options: Namespace) -> None:
    """Print the config; on stderr how much of the file it has, and what has to be set before it can be used."""
    try:
        wanted = find(options.format) if options.format else None
    except ValueError as error:
        raise Stop(f"--from: {error}") from None
    name = "standard input" if str(options.file) == "-" else str(options.file)
    with config_faults():
        made = convert(_content(options, name), name, wanted)
    sys.stdout.write(made.text)
    found = f"{made.backends} backends" + (f" and {made.sources} sources of backends" if made.sources else "")
    left = f"; {made.notes} settings are not taken over, the end of the config names each" if made.notes else ""
    sys.stderr.write(f"{name}: {made.title}: {found}{left}\n")
    if made.variables:
        sys.stderr.write(f"set before `headroom check`: {', '.join(made.variables)}\n")


def _content(options: Namespace, name: str) -> str:
    try:
        if str(options.file) == "-":
            content = sys.stdin.buffer.read(_BYTES_MOST + 1)
        else:
            with options.file.open("rb") as file:
                content = file.read(_BYTES_MOST + 1)
        text = content.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(f"{name}: cannot be read: {error}") from None
    if len(content) > _BYTES_MOST:
        raise Stop(f"{name}: has more than {_BYTES_MOST} bytes")
    return text
