"""The formats that can be imported: every module of ``formats`` that has a ``FORMAT``. Must not depend on any one."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from router.core.errors import ConfigError
from router.importing.format import Format
from router.spelling import suggestion


@cache
def formats() -> tuple[Format, ...]:
    """All of them, by name."""
    package = import_module("router.importing.formats")
    modules = (import_module(found.name) for found in iter_modules(package.__path__, f"{package.__name__}."))
    return tuple(sorted((vars(module)["FORMAT"] for module in modules), key=lambda each: str(each.name)))


def find(name: str) -> Format:
    """The format of that name. Raises ValueError."""
    for each in formats():
        if each.name == name:
            return each
    raise ValueError(f"no format {name!r}; {suggestion(name, [each.name for each in formats()])}")


def recognised(text: str, file: str) -> Format:
    """The format of a text. Raises ConfigError where it is of none, or of several."""
    found = [each for each in formats() if each.recognises(text)]
    if len(found) == 1:
        return found[0]
    among = ", ".join(each.name for each in found or formats())
    what = "of several formats" if found else "of no format that is known"
    raise ConfigError([f"{file}:1: {what}; name it with --from: one of {among}"])
