"""What MkDocs calls while it builds: pages that are made of other files or of the code, and links into the repository.

A page whose text is ``<!-- from: FILE -->`` is that file of the repository; ``<!-- made: NAME -->`` is a page of the
reference.
"""

import re
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path

from mkdocs.structure.files import File, Files  # noqa: E402

from deploy.docs import reference  # noqa: E402
from deploy.docs.links import PAGES, rewritten  # noqa: E402

_FROM: Final = re.compile(r"<!-- from: (\S+) -->\s*")
_MADE: Final = re.compile(r"<!-- made: (\w+) -->\s*")


def on_files(files: Files, config: Any) -> Files:
    """Every page with its text as it will be, and the files that the texts link to."""
    texts = {page.src_uri: page.content_string for page in files.documentation_pages()}
    sources = {name: found[1] for name, text in texts.items() if (found := _FROM.match(text))}
    pages = {source: name for name, source in sources.items()} | {f"{PAGES}/{name}": name for name in texts}
    needed: set[str] = set()
    for name, text in texts.items():
        source = sources.get(name, f"{PAGES}/{name}")
        content = (ROOT / source).read_text(encoding="utf-8") if name in sources else _with_reference(text)
        made, more = rewritten(content, source, name, pages.get)
        needed |= more
        old = files.get_file_from_path(name)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, name, content=made))
    for path in sorted(needed):
        files.append(File.generated(config, f"files/{path}", content=(ROOT / path).read_bytes()))
    return files


def _with_reference(text: str) -> str:
    return _MADE.sub(lambda found: str(getattr(reference, found[1])()), text)
