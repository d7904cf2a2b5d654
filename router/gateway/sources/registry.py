"""The source that an entry of the config stands for."""

from pathlib import Path

from router.config.settings import Discover
from router.gateway.config.plan import Plan
from router.gateway.sources.endpoint import Source
from router.gateway.sources.file import FileTargets


def source_of(plan: Plan, given: Discover, config: Path) -> Source:
    """Not read yet. *config*: the file that it stands in."""
    assert given.file is not None  # the only kind there is
    return FileTargets(config.parent / given.file.path)
