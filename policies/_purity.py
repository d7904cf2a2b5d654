"""What a policy's own source may hold, checked before any of it runs: ``examined``.

A policy answers from its arguments alone. So its file imports ``router.core``, parts of ``policies``, numpy and pure
modules of the standard library; it reads no clock, no file, no environment and no chance but ``rng``; it keeps nothing
between calls, neither in its module nor in a class; and it does not reach behind what it is shown.

The check reads the syntax tree and follows names, so it finds what an author does without noticing. What it cannot see
(a list under a second name) the contract finds by asking twice, and the validation by what the interpreter reports.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from policies._purity_rules import (
    BEHIND,
    BUILTINS,
    CHANGES,
    CHANGES_ITS_FIRST,
    CORE,
    DUNDERS,
    EMPTY,
    ITERATORS,
    OF_TUPLES,
    OWN,
    PARTS,
    PRIVATE,
    PURE,
    SETS_ITSELF,
    VERBS,
    is_dunder,
    is_part,
    member,
    not_pure,
)

_KEPT: Final = 64  # sources; a reload examines the same ones again
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Fault(NamedTuple):
    """``line`` of the source, from 1; ``what`` is there and what was expected."""

    line: int
    what: str


class Examined(NamedTuple):
    """What a source was found to hold. ``parts``: the modules of ``policies`` that it imports; what holds for the
    source must hold for them.
    """

    faults: tuple[Fault, ...]
    parts: tuple[str, ...]


@lru_cache(maxsize=_KEPT)
def examined(text: str, *, built_in: bool = False) -> Examined:
    """All that keeps this source from being a policy's, by line; SyntaxError when it is no Python. *built_in*: a module
    of ``policies``, which comes with the core: how deep it imports from there is for the import linter to judge.
    """
    tree = ast.parse(text)
    faults = sorted(set(_Reader(built_in=built_in).read(tree)))
    return Examined(tuple(faults), tuple(_parts(tree)))


def faults(text: str, *, built_in: bool = False) -> list[Fault]:
    """The faults of ``examined``."""
    return list(examined(text, built_in=built_in).faults)


def _parts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and is_part(node.module):
            if node.module in PARTS:
                yield from (f"{node.module}.{each.name}" for each in node.names)
            else:
                yield node.module


@dataclass(frozen=True)
class _Scope:
    """Where a node stands. ``own``: names that the innermost function binds (empty outside of any); ``shown``: the
    arguments of a verb; ``itself``: a method's first; ``sets``: whether the method makes the object; ``aliases``: own
    names that stand for others; ``around``: names that the functions around bind.
    """

    function: bool = False
    in_class: bool = False
    own: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()
    itself: str = ""
    sets: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    around: frozenset[str] = frozenset()


class _Reader:
    """Walks one file."""

    def __init__(self, *, built_in: bool) -> None:
        self._built_in = built_in
        self._modules: dict[str, str] = {}
        self._imported: set[str] = set()
        self._read_from: set[int] = set()  # nodes of which an attribute is read
        self._looks: dict[type[ast.AST], Callable[[Any, _Scope], Iterator[str]]] = {
            ast.Import: self._import,
            ast.ImportFrom: self._import_from,
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.MatchClass: self._pattern,
            ast.Global: self._state_statement,
            ast.Nonlocal: self._state_statement,
            ast.Assign: self._assigned,
            ast.AnnAssign: self._assigned,
            ast.FunctionDef: self._signature,
            ast.AsyncFunctionDef: self._signature,
            ast.Lambda: self._signature,
            ast.Subscript: self._subscript,
            ast.Call: self._call,
        }

    def read(self, tree: ast.Module) -> Iterator[Fault]:
        """Every fault, in no order."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._modules |= {each.asname: each.name for each in node.names if each.asname}
                tops = [each.name.partition(".")[0] for each in node.names if not each.asname]
                self._modules |= {top: top for top in tops}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
                self._imported |= full.keys()
                self._modules |= {
                    name: module for name, module in full.items() if module in PURE or node.module in PARTS
                }
        yield from self._walk(tree, _Scope())

    def _walk(self, node: ast.AST, scope: _Scope) -> Iterator[Fault]:
        look = self._looks.get(type(node))
        if look is not None:
            yield from (Fault(getattr(node, "lineno", 1), what) for what in look(node, scope))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from self._walk_function(node, scope)
            return
        inside = replace(scope, in_class=True, function=False) if isinstance(node, ast.ClassDef) else scope
        for child in ast.iter_child_nodes(node):
            yield from self._walk(child, inside)

    def _walk_function(self, node: _Function, scope: _Scope) -> Iterator[Fault]:
        """Its signature belongs to where it stands, its body to itself."""
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        signature = [node.args] if isinstance(node, ast.Lambda) else [node.args, *node.decorator_list, node.returns]
        for child in filter(None, signature):
            yield from self._walk(child, scope)
        inside = _scope_of(node, scope)
        for child in body:
            yield from self._walk(child, inside)

    # -- imports ---------------------------------------------------------------------------------------------------

    def _import(self, node: ast.Import, _: _Scope) -> Iterator[str]:
        for each in node.names:
            if each.name.partition(".")[0] in ("router", "policies"):
                yield f"imports {each.name}; expected 'from {CORE} import ...' or 'from policies... import ...'"
            elif each.name not in PURE:
                yield not_pure(each.name)

    def _import_from(self, node: ast.ImportFrom, _: _Scope) -> Iterator[str]:
        module = "." * node.level + (node.module or "")
        if self._built_in and module.startswith(f"{CORE}."):
            return
        if module not in PURE and module != CORE and not is_part(module):
            yield not_pure(module)
            return
        for each in node.names:
            if each.name == "*":
                yield f"imports all of {module}; expected names, one by one"
            else:
                yield from member(module, each.name)

    # -- names -----------------------------------------------------------------------------------------------------

    def _name(self, node: ast.Name, scope: _Scope) -> Iterator[str]:
        if not isinstance(node.ctx, ast.Load) or node.id in scope.own:
            return
        if node.id in BUILTINS:
            yield f"uses {node.id}; {BUILTINS[node.id]}"
        elif is_dunder(node.id) and node.id not in DUNDERS:
            yield f"uses {node.id}; {OWN}"
        elif self._module(node, scope) is not None and id(node) not in self._read_from:
            yield f"hands {node.id} on, a module; expected what it is used for, by name"

    def _attribute(self, node: ast.Attribute, scope: _Scope) -> Iterator[str]:
        self._read_from.add(id(node.value))
        module = self._module(node.value, scope)
        if module is not None:
            yield from member(module, node.attr)
            if self._module(node, scope) is not None and id(node) not in self._read_from:
                yield f"hands {ast.unparse(node)} on, a module; expected what it is used for, by name"
            return
        if not isinstance(node.ctx, ast.Load):
            yield from self._change(node, scope, f"sets {ast.unparse(node)}")
        if not _is_named(node.value, scope.itself):
            yield from self._hidden(node, scope)
        elif is_dunder(node.attr):
            yield f"uses .{node.attr}; {OWN}"

    @staticmethod
    def _hidden(node: ast.Attribute, scope: _Scope) -> Iterator[str]:
        """An attribute of what is not the policy itself, nor a module."""
        outside = isinstance(node.value, ast.Name) and node.value.id not in scope.own | scope.around
        if node.attr in BEHIND:
            yield f"uses .{node.attr}, which reaches behind an array; it is read by index and by numpy's functions"
        elif is_dunder(node.attr):
            if node.attr not in DUNDERS and not (node.attr == "__setattr__" and scope.sets):
                yield f"uses .{node.attr}; {OWN}"
        elif node.attr.startswith("_") and not outside and node.attr not in OF_TUPLES:
            yield f"uses {ast.unparse(node)}; {PRIVATE}"

    def _module(self, node: ast.expr, scope: _Scope) -> str | None:
        """The module that an expression names, if it does."""
        if isinstance(node, ast.Name):
            return None if node.id in scope.own else self._modules.get(node.id)
        if isinstance(node, ast.Attribute) and (of := self._module(node.value, scope)) is not None:
            return f"{of}.{node.attr}" if f"{of}.{node.attr}" in PURE else None
        return None

    def _pattern(self, node: ast.MatchClass, _: _Scope) -> Iterator[str]:
        yield from (f"reads {name} by a pattern; {PRIVATE}" for name in node.kwd_attrs if name.startswith("_"))

    # -- state -----------------------------------------------------------------------------------------------------

    def _state_statement(self, node: ast.Global | ast.Nonlocal, _: _Scope) -> Iterator[str]:
        kind = "global" if isinstance(node, ast.Global) else "nonlocal"
        yield f"has state: {kind} {', '.join(node.names)}; a policy keeps nothing between calls"

    def _assigned(self, node: ast.Assign | ast.AnnAssign, scope: _Scope) -> Iterator[str]:
        """What is bound outside of functions lives on between calls."""
        value = node.value
        if scope.function or value is None:
            return
        if _is_empty(value):
            yield f"keeps {ast.unparse(value)} between calls, which is there to be filled; expected a constant"
        elif isinstance(value, ast.GeneratorExp) or _called(value) in ITERATORS:
            yield "keeps an iterator between calls, which moves on; expected a constant such as a tuple"

    def _signature(self, node: _Function, _: _Scope) -> Iterator[str]:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            if isinstance(default, ast.List | ast.Dict | ast.Set) or _is_empty(default):
                yield f"has a default {ast.unparse(default)} that lives on between calls; expected a constant"

    def _subscript(self, node: ast.Subscript, scope: _Scope) -> Iterator[str]:
        if not isinstance(node.ctx, ast.Load):
            yield from self._change(node, scope, f"writes {ast.unparse(node)}")

    def _call(self, node: ast.Call, scope: _Scope) -> Iterator[str]:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1] if len(node.args) > 1 else None
            if not isinstance(name, ast.Constant) or str(name.value).startswith("_"):
                yield f"uses getattr for a name that is not written out or private; {PRIVATE}"
        if self._changes_its_first(node.func, scope) and node.args:
            yield from self._change(node.args[0], scope, f"calls {ast.unparse(node.func)}({ast.unparse(node.args[0])})")
        elif self._changes_its_own(node.func, scope):
            yield from self._change(node.func, scope, f"calls {ast.unparse(node.func)}()")
        outs = [given.value for given in node.keywords if given.arg == "out"]
        for given in outs:
            yield from self._change(given, scope, f"writes {ast.unparse(given)}")

    def _changes_its_own(self, function: ast.expr, scope: _Scope) -> bool:
        """``numbers.append``: whether a method changes what it is called on (not one of the policy itself)."""
        if not isinstance(function, ast.Attribute) or function.attr not in CHANGES:
            return False
        return self._module(function.value, scope) is None and not _is_named(function.value, scope.itself)

    def _changes_its_first(self, function: ast.expr, scope: _Scope) -> bool:
        """``next``, ``heapq.heappush``, ``np.add.at``: whether a function writes what it is handed first."""
        if isinstance(function, ast.Name):
            return function.id == "next" or (function.id in CHANGES_ITS_FIRST and function.id in self._imported)
        root = _root(function)
        of_module = root is not None and root in self._modules and root not in scope.own
        return of_module and isinstance(function, ast.Attribute) and function.attr in CHANGES_ITS_FIRST

    @staticmethod
    def _change(node: ast.expr, scope: _Scope, what: str) -> Iterator[str]:
        """*what* changes the object that *node* begins with: it must be the function's own."""
        name = _root(node)
        if name is None:
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                yield f"{what}; a policy keeps nothing between calls"
            return
        name = scope.aliases.get(name, name)
        if name in scope.shown:
            yield f"{what}: an argument; what a policy is shown is not to be changed"
        elif name == scope.itself and scope.itself:
            if not scope.sets:
                yield f"{what}; a policy is a frozen value and keeps nothing between calls"
        elif scope.function and name not in scope.own:
            yield f"{what}, which outlives the call; a policy keeps nothing between calls"


def _scope_of(node: _Function, around: _Scope) -> _Scope:
    """Of a function's body."""
    arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    arguments += [each.arg for each in (node.args.vararg, node.args.kwarg) if each is not None]
    bound, aliases = set(arguments), {}
    for child in _inside(node):
        bound.update(_binds(child))
        if isinstance(child, ast.Assign) and isinstance(child.value, ast.Name | ast.Attribute | ast.Subscript):
            aliases.update({each.id: _root(child.value) for each in child.targets if isinstance(each, ast.Name)})
    name = "" if isinstance(node, ast.Lambda) else node.name
    itself, shown = around.itself, around.shown - bound
    if around.in_class and not around.function and not isinstance(node, ast.Lambda):
        static = any(_is_named(each, "staticmethod") for each in node.decorator_list)
        itself = "" if static or not arguments else arguments[0]
        shown = frozenset(arguments) - {itself} if name in VERBS else shown
    return _Scope(
        function=True,
        in_class=around.in_class,
        own=frozenset(bound),
        shown=shown,
        itself=itself,
        sets=name in SETS_ITSELF,
        aliases={own: root for own, root in aliases.items() if root and (root not in bound or root == itself)},
        around=around.own | around.around,
    )


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function's body but what is inside of functions and classes there."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _inside(child)


def _binds(node: ast.AST) -> Iterator[str]:
    """Names that this node binds."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, _NAMED) and node.name:
        yield node.name


_NAMED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def _root(node: ast.expr) -> str | None:
    """The name that an expression begins with; None when it begins otherwise."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.Call):
        if not isinstance(node, ast.Call):
            node = node.value
        elif _is_named(node.func, "type") and node.args:  # a class is shared by all that it made
            node = node.args[0]
        else:
            return None
    return node.id if isinstance(node, ast.Name) else None


def _called(node: ast.expr) -> str:
    """The last part of the name that is called."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "id", "") or getattr(node.func, "attr", "")


def _is_empty(node: ast.expr) -> bool:
    """A container with nothing in it yet."""
    if isinstance(node, ast.Call):
        return _called(node) in EMPTY and (not node.args or _called(node) in ("defaultdict", "deque", "Counter"))
    return isinstance(node, ast.List | ast.Dict) and not (node.elts if isinstance(node, ast.List) else node.keys)


def _is_named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and bool(name) and node.id == name
