"""The words of a policy's language: what its source may import and use, and what each refusal says."""

from collections.abc import Iterator
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Final


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


VERBS: Final = frozenset({"choose", "admit", "scale"})
PURE: Final = words(
    "__future__ abc bisect cmath collections collections.abc copy dataclasses enum fractions functools hashlib heapq"
    " itertools math numbers operator re statistics string struct textwrap typing zlib"
    " numpy numpy.fft numpy.linalg numpy.polynomial numpy.typing"
)
CORE: Final = "router.core"
PARTS: Final = ("policies.routing", "policies.admission", "policies.scaling")
NOTHING: Final = "a policy reads and writes nothing outside of its arguments"
PRIVATE: Final = "names that begin with an underscore are not a policy's to read"
OWN: Final = "a policy needs nothing of the interpreter's own"
IMPORTS: Final = "expected router.core, policies.*, numpy or a pure standard module (math, dataclasses, ...)"
HINTS: Final = MappingProxyType(
    dict.fromkeys(("time", "datetime"), "the time is fleet.now_s")
    | dict.fromkeys(("random", "secrets", "numpy.random"), "the only chance is rng.random()")
    | dict.fromkeys(
        ("os", "sys", "pathlib", "io"), "what a policy is to know are its parameters, which the config gives"
    )
    | dict.fromkeys(
        ("threading", "asyncio", "multiprocessing", "subprocess"), "a policy answers at once, from its arguments"
    )
    | {"functools": "what was computed is state between calls"}
)
DENIED: Final = MappingProxyType(
    {
        "functools": words("cache cached_property lru_cache singledispatch singledispatchmethod"),
        "hashlib": frozenset(["file_digest"]),
        "operator": frozenset(["attrgetter", "methodcaller"]),
        "numpy": words(
            "DataSource ctypeslib distutils f2py fromfile fromregex genfromtxt lib load loadtxt memmap random save"
            " savetxt savez savez_compressed set_printoptions setbufsize seterr seterrcall testing"
        ),
    }
)
BUILTINS: Final = MappingProxyType(
    dict.fromkeys(("open", "input", "print"), NOTHING)
    | dict.fromkeys(("hash", "id"), "they differ from process to process; hash64 of router.core does not")
    | dict.fromkeys(
        words("breakpoint compile delattr eval exec exit globals locals memoryview quit setattr vars"),
        "a policy reads its arguments by their public names",
    )
)
BEHIND: Final = words("base ctypes data dump dumps f_back f_builtins f_globals flags setflags tb_frame tofile")
CHANGES: Final = words(
    "add append appendleft byteswap clear discard extend extendleft fill insert itemset partition pop popitem popleft"
    " put remove resize reverse rotate send setdefault setfield sort subtract update"
)
CHANGES_ITS_FIRST: Final = words(
    "at copyto delitem fill_diagonal heapify heappop heappush heappushpop heapreplace insort insort_left insort_right"
    " place put put_along_axis putmask setitem"
)
EMPTY: Final = words("Counter OrderedDict bytearray defaultdict deque dict list set")
ITERATORS: Final = words("accumulate chain count cycle enumerate filter iter map repeat reversed zip")
SETS_ITSELF: Final = frozenset({"__init__", "__new__", "__post_init__"})
OF_TUPLES: Final = frozenset({"_asdict", "_fields", "_make", "_replace"})
DUNDERS: Final = frozenset({"__all__", "__doc__", "__init__", "__name__", "__post_init__"})


def not_pure(module: str) -> str:
    """What is said of an import that a policy may not have."""
    hint = next((HINTS[name] for name in (module, module.partition(".")[0]) if name in HINTS), "")
    if module.startswith(f"{CORE}."):
        hint = f"all that a policy needs is in {CORE} itself"
    return f"imports {module}; {IMPORTS}" + (f": {hint}" if hint else "")


def is_part(module: str) -> bool:
    """A policy, or what policies share."""
    return module in PARTS or module.startswith(tuple(f"{part}." for part in PARTS))


def member(module: str, name: str) -> Iterator[str]:
    """What is wrong with using this name of a module that may be imported."""
    full = f"{module}.{name}"
    if module == CORE:
        if name not in import_module(CORE).__all__:
            yield f"uses {full}; expected a name of {CORE}'s __all__"
    elif name in DENIED.get(module, ()):
        yield f"uses {full}; {HINTS.get(full) or HINTS.get(module) or NOTHING}"
    elif name.startswith("_") and not is_part(module):
        yield f"uses {full}; {PRIVATE}"
    elif full not in PURE and module not in PARTS and _is_module(module, name):
        yield not_pure(full)


def _is_module(module: str, name: str) -> bool:
    """Whether a name of a module is another module, which it imported for itself, such as ``statistics.random``."""
    if is_part(module):  # a policy's own part may not have been checked yet, so it is not imported
        return name == "np" or name in PURE
    return isinstance(getattr(import_module(module), name, None), ModuleType)


def is_dunder(name: str) -> bool:
    """``__of the interpreter__``."""
    return name.startswith("__") and name.endswith("__")
