"""A text of another router as a router.yaml. Must not depend on where the text came from."""

from dataclasses import dataclass

from router.importing.draft import Draft
from router.importing.format import Format
from router.importing.registry import recognised


@dataclass(frozen=True, slots=True)
class Imported:
    """``text`` is the config; ``notes`` the number of settings that it names as not taken over, ``variables`` the
    environment variables that it refers to.
    """

    text: str
    title: str
    backends: int
    sources: int
    notes: int
    variables: tuple[str, ...]


def convert(text: str, name: str, wanted: Format | None = None) -> Imported:
    """The config that *text*, the content of the file *name*, stands for. Raises ConfigError with the line."""
    form = wanted or recognised(text, name)
    trees, draft = form.read(text, name), Draft(name)
    form.take(trees, draft)
    form.name_the_rest(trees, draft)
    written = draft.finish(form.title)
    backends, sources = (len(draft.data.get(section, [])) for section in ("backends", "discover"))
    return Imported(written, form.title, backends, sources, len(draft.notes), tuple(draft.variables))
