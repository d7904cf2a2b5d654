"""Command lines: a table of commands, one help screen, errors in one line.

A command's body is a module that is imported when the command runs. So ``--help`` and ``--version`` import nothing
but this file and the table, and each command what it uses. Must not import what is slow to import: every command
waits for it.
"""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

from router import stop_signals
from router.compiled import refuse_stale
from router.spelling import suggestion
from router.urls import http_url

WRONG_USE = 2  # the exit status
_NAME_WIDTH = 16


class Command(NamedTuple):
    """One command. ``module`` has ``run(options)``, which returns the exit status, or None for 0."""

    name: str
    module: str
    help: str  # the first line is the table's
    arguments: Callable[[ArgumentParser], None]
    serves: bool = False  # runs until a signal ends it, with status 0
    hidden: bool = False


class Program(NamedTuple):
    """A command line."""

    name: str
    module: str  # for ``python -m``
    help: str
    commands: Sequence[Command]
    version: Callable[[], str]


class Stop(Exception):
    """Ends a command with an exit status and a line on stderr."""

    def __init__(self, why: str, status: int = 1) -> None:
        super().__init__(why)
        self.status = status


class WrongUse(Stop):
    """The options cannot be as they are: what is wrong, and where the help of *command* is."""

    def __init__(self, why: str, command: str) -> None:
        super().__init__(f"error: {why}\n`{command} --help` shows the options", WRONG_USE)


class _Parser(ArgumentParser):
    """argparse with a short error: what is wrong, and where the help is."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse(message, self.prog)


def run(program: Program, words: Sequence[str]) -> int:
    """Run the command that *words* name; its exit status."""
    try:
        return _run(program, _name(program), list(words))
    except Stop as stop:
        complain(str(stop))
        return stop.status
    except BrokenPipeError:  # the reader has seen enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def complain(text: str) -> None:
    """On stderr, red on a terminal."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    sys.stderr.write("".join(f"{red}{line}{plain}\n" for line in text.splitlines()))


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least *least*."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return number


def number_within(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """The type of an option that is a number from *least* to *most*."""

    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise ArgumentTypeError(f"must be {_range(least, most)}, got {text}")
        return value

    return number


def address(text: str) -> str:
    """The type of an option that is the address of a server."""
    try:
        return http_url(text)
    except ValueError as problem:
        raise ArgumentTypeError(str(problem)) from None


def port(text: str) -> int:
    """The type of an option that is a TCP port."""
    return int(number_within(0, 65_535)(text))


def output_file(text: str) -> Path:
    """The type of an option that is a file to write, or ``-``. That it can be written is checked before the work."""
    path = Path(text)
    if text == "-":
        return path
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder, expected a file to write")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{path}: may not be written")
    return path


def _range(least: float, most: float) -> str:
    return f"at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"


def _run(program: Program, name: str, words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in {"--help", "-h", "help"}:
        sys.stdout.write(_screen(program, name))
        return 0
    if first == "--version":
        sys.stdout.write(f"{program.version()}\n")
        return 0
    command = _command(program, name, first)
    stop_signals.install(0 if command.serves else None)
    refuse_stale()
    options = _options(command, name, words[1:])
    return import_module(command.module).run(options) or 0


def _options(command: Command, name: str, words: list[str]) -> Namespace:
    parser = _Parser(
        prog=f"{name} {command.name}",
        description=command.help,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser.parse_intermixed_args(words)


def _command(program: Program, name: str, wanted: str) -> Command:
    known = {command.name: command for command in program.commands}
    if wanted in known:
        return known[wanted]
    shown = [command.name for command in program.commands if not command.hidden]
    what = "option" if wanted.startswith("-") else "command"
    raise Stop(
        f"error: unknown {what} {wanted!r}; {suggestion(wanted, shown)}\n`{name} --help` shows the commands", WRONG_USE
    )


def _screen(program: Program, name: str) -> str:
    shown = [command for command in program.commands if not command.hidden]
    commands = [f"  {command.name:<{_NAME_WIDTH}}{command.help.splitlines()[0]}" for command in shown]
    version = f"  {'--version':<{_NAME_WIDTH}}Print the version, and whether the build is compiled."
    lines = [f"usage: {name} COMMAND [OPTIONS]", "", program.help, "", "commands:", *commands, "", "options:", version]
    return "\n".join([*lines, "", f"`{name} COMMAND --help` shows a command's options.", ""])


def _name(program: Program) -> str:
    """As it was typed."""
    return f"python -m {program.module}" if sys.argv[0].endswith("__main__.py") else program.name
