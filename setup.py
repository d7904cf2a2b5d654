"""Builds what runs as C: the numeric loops (``_name.c``), and the hot modules, which mypyc translates.

Everything else about the package stands in pyproject.toml, the list of modules (``tool.headroom.compiled``) too. A
build compiles, or fails. ``HEADROOM_COMPILE=loops`` leaves the modules interpreted, ``no`` builds an interpreted
package. ``python setup.py build_ext --inplace`` puts the extensions beside their sources (``make fast``), with a
manifest for ``router/compiled.py``. What has not changed is not compiled again: hashes decide, since a checkout of git
sets every time anew.
"""

import gc
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from runpy import run_path
from typing import Any, Final

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

HERE: Final = Path(__file__).parent
BUILD: Final = Path("build")
CHECKS: Final = run_path(str(HERE / "router/compiled.py"))  # reads what this writes; imports nothing of the project
PACKAGES: Final[tuple[str, ...]] = CHECKS["PACKAGES"]
WISH: Final = os.environ.get("HEADROOM_COMPILE", "all")
WISHES: Final = ("all", "loops", "no")

LOOPS: Final = (
    "router/core/_kernels",
    "router/core/_estimators",
    "router/core/_hashing",
    "router/gateway/traffic/_fast_path",
    "policies/routing/_headroom_loops",
)
LOOPS_HEADER: Final = "router/core/_loops.h"
LOOPS_FLAGS: Final = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")  # bit for bit
CONSTANTS_OF: Final = (
    "router.core.columns", "router.core.kernels", "router.core.estimators", "router.core.hashing",
    "policies.routing._headroom",
)  # fmt: skip
CONSTANTS_TO_C: Final = """
import re, sys
from importlib import import_module
found = {}
for name in sys.argv[1:]:
    for key, value in vars(import_module(name)).items():
        if re.fullmatch("_?[A-Z][A-Z0-9_]*", key) and isinstance(value, int | float | tuple):
            assert found.setdefault(key, value) == value, key
def text(value):
    if isinstance(value, tuple):
        return "{" + ", ".join(map(text, value)) + "}"
    return f"({value.hex()})" if isinstance(value, float) else f"({value}{'ULL' if value >= 2**63 else ''})"
for key, value in sorted(found.items()):
    print(f"#define {key} {text(value)}")
"""

LIBRARY: Final = "router._native.modules"  # the code of all translated modules: calls between them stay direct
DIRECT_CALLS: Final = ["-fno-semantic-interposition", "-fvisibility=hidden"]  # nobody replaces a library's functions
MYPY: Final = (
    # Checked as strictly as `make check` does it, where numpy can be seen; a build must not fail for want of a stub.
    "--ignore-missing-imports", "--no-warn-unused-ignores", "--no-warn-return-any",
    # Not the cache of `make check`, whose other options would empty it each time.
    "--cache-dir=build/mypy", "--no-sqlite-cache",
)  # fmt: skip


class Package(Distribution):
    """One for a platform, unless an interpreted one was asked for."""

    def has_ext_modules(self) -> bool:
        """What is translated is known only once it is built: metadata and source archives need no mypy."""
        return WISH != "no"


class Build(build_ext):
    """Translates, compiles as many files at a time as there are cores, and records what went into it."""

    def run(self) -> None:
        """Build. A build that fails leaves nothing that would be loaded."""
        os.chdir(HERE)
        places = [Path(self.build_lib), *([HERE] if self.inplace else [])]
        for place in places:
            forget(place)
        self.distribution.ext_modules = [*loops(), *(translated() if WISH == "all" else [])]
        self.swig_opts = None  # as before the first time; what was finalized once is a list
        self.finalize_options()  # again: with the extensions
        self.parallel = self.parallel or cores()
        self.force = True  # build_extension decides
        super().run()
        for place in places:
            if WISH == "all":
                remove_others(place, [self.get_ext_filename(extension.name) for extension in self.extensions])
            record(place)

    def build_extensions(self) -> None:
        """Without -Wall: Python's own flags have it, and gcc takes minutes to warn of large generated files."""
        self.compiler.compiler_so = [flag for flag in self.compiler.compiler_so if flag != "-Wall"]
        with ThreadPoolExecutor(cores()) as pool:
            self.compiler.compile = Objects(self.compiler, pool).compile
            super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile and link an extension, unless the one that is there was made of the same."""
        made_of = hash_of([*ext.sources, *ext.depends], self.compiler.compiler_so, ext.extra_compile_args)
        note = Path(self.build_temp, f"{ext.name}.made_of")
        if Path(self.get_ext_fullpath(ext.name)).exists() and note.exists() and note.read_text() == made_of:
            return
        note.unlink(missing_ok=True)
        super().build_extension(ext)
        note.write_text(made_of)


class Objects:
    """A compiler's object files: made as many at a time as there are cores, kept while they are made of the same."""

    def __init__(self, compiler: Any, pool: ThreadPoolExecutor) -> None:
        self._compiler, self._compile, self._pool = compiler, compiler.compile, pool

    def compile(self, sources: list[str], output_dir: str, depends: list[str], **options: Any) -> list[str]:
        """What setuptools calls to compile the sources of one extension: the paths of their object files."""
        made_of = hash_of(depends, self._compiler.compiler_so, options)
        return list(self._pool.map(lambda source: self._object(source, output_dir, made_of, options), sources))

    def _object(self, source: str, output_dir: str, made_of: str, options: dict[str, Any]) -> str:
        (path,) = self._compiler.object_filenames([source], output_dir=output_dir)
        note, made_of = Path(f"{path}.made_of"), hash_of([source], made_of)
        if not (Path(path).exists() and note.exists() and note.read_text() == made_of):
            note.unlink(missing_ok=True)
            self._compile([source], output_dir=output_dir, **options)
            note.write_text(made_of)
        return str(path)


def hash_of(files: Iterable[str], *more: object) -> str:
    """One hash of these files, of what else is given, and of the tools whose headers are compiled in."""
    return sha256(repr(([file_hash(name) for name in files], more, tools())).encode()).hexdigest()


@cache
def file_hash(name: str) -> str:
    """The hash of a file that this build no longer changes."""
    digest: str = CHECKS["digest"](Path(name))
    return digest


@cache
def tools() -> tuple[str, ...]:
    """The versions of Python, of the compiler, and of the packages whose headers are included."""
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout
    return (sys.version, compiler, *map(installed, ("mypy", "numpy")))


def installed(package: str) -> str:
    """The version of a package; nothing where the loops alone are compiled without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def cores() -> int:
    """How many compilers may run at a time."""
    return len(os.sched_getaffinity(0))


# --- what is built


def loops() -> list[Extension]:
    """One extension for each file of loops."""
    from numpy import get_include  # noqa: PLC0415 - only where something is to be built

    header = BUILD / "loops" / "_constants.h"
    if newer_group([f"{name.replace('.', '/')}.py" for name in CONSTANTS_OF], str(header)):
        write_constants(header)
    return [
        Extension(
            name.replace("/", "."),
            [f"{name}.c"],
            include_dirs=[get_include(), str(Path(LOOPS_HEADER).parent), str(header.parent)],
            depends=[LOOPS_HEADER, str(header)],
            extra_compile_args=[*LOOPS_FLAGS],
        )
        for name in LOOPS
    ]


def write_constants(header: Path) -> None:
    """Write the constants of the Python loops for those in C: no number stands twice."""
    interpreted = {**os.environ, "HEADROOM_COMPILE": "no", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", CONSTANTS_TO_C, *CONSTANTS_OF]
    constants = subprocess.run(command, env=interpreted, check=True, stdout=subprocess.PIPE, text=True).stdout
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(constants, encoding="utf-8")


def translated() -> list[Extension]:
    """The modules in C: for each the extension that Python imports, and one library with the code of all of them."""
    Path(LIBRARY.rpartition(".")[0].replace(".", "/")).mkdir(exist_ok=True)
    # In a process of its own: to free mypy's trees at the end of this one would take seconds. No pool: a build frontend
    # executes this file under a name by which a pool would not find the function.
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(translate()))
    process.start()
    sender.close()
    try:
        made: list[Extension] = receiver.recv()
    except EOFError:
        raise SystemExit("the modules could not be translated; mypy's messages say why") from None
    process.join()
    return made


def translate() -> list[Extension]:
    """Write the C of all modules, a file for each, so that an edit compiles one of them again."""
    from mypyc.build import mypycify  # noqa: PLC0415 - only where something is to be compiled

    gc.disable()  # nothing of mypy's trees becomes garbage
    files = modules()
    # As a group by name mypyc keeps mypy's cache of what the modules import; without, it reads all of it each time.
    group = [(files, LIBRARY)]
    made = list(mypycify([*MYPY, *files], opt_level="2", debug_level="0", multi_file=True, separate=group))
    complete(made)
    headers = BUILD / Path(LIBRARY.replace(".", "/")).parent  # mypyc looks for them beside the C files
    for extension in made:
        extension.include_dirs.append(str(headers))
        extension.extra_compile_args = [*extension.extra_compile_args, *DIRECT_CALLS]
        extension.depends.extend(map(str, sorted(headers.glob("*.h"))))
    return made


def complete(made: Iterable[Extension]) -> None:
    """Add those of mypyc's own C files to the library that it leaves out where the module that calls them was not
    translated again but taken from its cache (2.4): it would be linked without them, and could not be loaded.
    """
    import mypyc  # noqa: PLC0415 - only where something is to be compiled

    own = {path.name for path in Path(mypyc.__file__).with_name("lib-rt").glob("*_ops.c")}
    for extension in made:
        if any(Path(source).name in own for source in extension.sources):
            there = {str(path) for path in BUILD.glob("*_ops.c") if path.name in own}
            extension.sources.extend(sorted(there - set(extension.sources)))


def modules() -> list[str]:
    """The files to translate, as pyproject.toml lists them."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    return [str(path) for pattern in project["tool"]["headroom"]["compiled"] for path in sorted(Path().glob(pattern))]


# --- what is recorded of it


def manifest(place: Path) -> Path:
    """Where ``router/compiled.py`` looks for it."""
    return place / str(CHECKS["MANIFEST"])


def recorded(place: Path) -> dict[str, dict[str, str]]:
    """The manifest, or an empty one."""
    path = manifest(place)
    return json.loads(path.read_bytes()) if path.exists() else {}


def forget(place: Path) -> None:
    """Remove what an earlier build left beside the sources: loops, and the record of modules that are built again."""
    for name in LOOPS if place == HERE else ():
        (place / f"{name}{EXTENSION_SUFFIXES[0]}").unlink(missing_ok=True)
    kept = recorded(place).get("modules")
    manifest(place).unlink(missing_ok=True)
    if kept and WISH == "loops":
        manifest(place).write_text(json.dumps({"modules": kept}), encoding="utf-8")


def record(place: Path) -> None:
    """Write down the sources of what was built, each with its hash."""
    constants = [f"{name.replace('.', '/')}.py" for name in CONSTANTS_OF]
    loop_sources = [LOOPS_HEADER, *(f"{name}.c" for name in LOOPS), *constants]
    parts = recorded(place) | {
        "loops": {name: file_hash(name) for name in loop_sources},
        "code": {name: CHECKS["code_digest"](Path(name)) for name in constants},
    }
    if WISH == "all":
        parts["modules"] = {name: file_hash(name) for name in with_imports(modules())}
    manifest(place).write_text(json.dumps(parts, indent=1), encoding="utf-8")


def remove_others(place: Path, made: Iterable[str]) -> None:
    """Remove the extensions of modules that are no longer compiled."""
    for path in (path for package in PACKAGES for path in (place / package).rglob(f"*{EXTENSION_SUFFIXES[0]}")):
        if str(path.relative_to(place)) not in made:
            path.unlink()


def with_imports(files: Iterable[str]) -> list[str]:
    """These files and all of ours that they import: their constants and types are compiled in."""
    found: set[str] = set()
    left = list(files)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left.extend(imported(Path(name)))
    return sorted(found)


def imported(source: Path) -> Iterator[str]:
    """The files of ours that a source imports; read by pattern, which takes a tenth of the time of parsing them all."""
    text = source.read_text(encoding="utf-8")
    names = re.findall(r"^ *import ([\w.]+)", text, re.MULTILINE)
    for module, imports in re.findall(r"^ *from ([\w.]+) import (\([^)]*\)|.*)", text, re.MULTILINE):
        names += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", imports))]
    for name in names:
        path = name.replace(".", "/")
        if path.partition("/")[0] in PACKAGES:
            yield from (file for file in (f"{path}.py", f"{path}/__init__.py") if Path(file).is_file())


if WISH not in WISHES:
    sys.exit(f"HEADROOM_COMPILE is {WISH!r}; it may be {', '.join(WISHES)}")
setup(distclass=Package, cmdclass={"build_ext": Build})
