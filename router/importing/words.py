"""Command lines as words with their lines, as a shell reads them. Must not depend on what an option means."""

import shlex
from io import StringIO
from typing import NamedTuple

from router.core.errors import ConfigError


class Word(NamedTuple):
    """One word of a command, and the line on which it ends, counted from 1."""

    text: str
    line: int


def words(text: str, name: str) -> list[Word]:
    """The words of a script. Raises ConfigError where a quotation is not closed."""
    stream = StringIO(text.replace("\\\n", " \n"))
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split = True
    found: list[Word] = []
    try:
        while (word := lexer.get_token()) is not None:
            found.append(Word(word, _line(lexer.lineno, stream)))
    except ValueError as error:
        raise ConfigError([f"{name}:{lexer.lineno}: not a command line: {error}"]) from None
    return found


def _line(number: int, stream: StringIO) -> int:
    """The lexer is past the line break that ended a word, if one did."""
    past = stream.tell()
    ended = past > 0 and stream.getvalue()[past - 1] == "\n"
    return max(1, number - ended)
