"""What to say of a name that is not known: the nearest known names, or all of them. One wording for the whole project.

Pure, and depends on nothing else of the project: the core, the policies and the command lines use it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """``did you mean 'port'?`` with up to *count* names near *word*; ``expected one of host, port`` with none near.

    *cutoff*: how alike a name has to be, as difflib measures it (1: the same).
    """
    names = list(known)
    near = [repr(name) for name in get_close_matches(word, names, n=count, cutoff=cutoff)]
    if not near:
        return f"expected one of {', '.join(names)}" if names else "there is none"
    return f"did you mean {' or '.join(near)}?"
