"""Every regular expression of a package: `collect` sees each call of `re` in the source, and each pattern that importing it compiles.

What it could not see is reported, so that no pattern is missed.
"""

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# Not imported: patterns of modules that need them are read from the source.
HEAVY = ("torch", "ray", "vllm", "transformers")

SCANS = ("findall", "finditer", "split", "sub", "subn")
_METHODS = frozenset({"match", "fullmatch", "search", *SCANS})
_CALLS = _METHODS | {"compile"}
_HARMLESS = ("escape", "Pattern", "Match", "error", "purge")  # of the module `re`


@dataclass(slots=True, frozen=True)
class Found:
    """One pattern, and the methods that match text against it."""

    where: str
    pattern: str
    flags: int
    methods: tuple[str, ...]


@dataclass(slots=True)
class _Compiled:
    """A call of `re.compile` while a package was imported."""

    file: str
    line: int
    pattern: str
    flags: int
    seen: bool = False


@dataclass(slots=True)
class _Module:
    path: Path
    tree: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @property
    def uses_re(self) -> bool:
        return any(isinstance(node, ast.Name) and node.id == "re" for node in self.parents)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            yield (node := self.parents[node])


_Read = Mapping[str, Sequence[tuple[_Module, ast.AST]]]  # uses of each name


def collect(root: Path, packages: Sequence[str]) -> tuple[list[Found], list[str]]:
    """The patterns of `packages` in `root`, and the code that may hide one. Imports modules with patterns that need none of `HEAVY`."""
    paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    modules = [_Module(path, ast.parse(path.read_text())) for path in paths]
    names = _names(modules)
    compiled, imported = _import(root, [module.path for module in modules if module.uses_re])
    found: list[Found] = []
    offences: list[str] = []
    for module in modules:
        short = str(module.path.relative_to(root))
        for node in ast.walk(module.tree):
            offences += [f"{short}:{node.lineno} {why}" for why in _hiding(module, node)]  # type: ignore[attr-defined]
            if not isinstance(node, ast.Call) or _re_attribute(node.func) not in _CALLS:
                continue
            where = f"{short}:{node.lineno}"
            methods = _methods(names, module, node)
            here = [
                one
                for one in compiled
                if one.file == str(module.path) and node.lineno <= one.line <= (node.end_lineno or node.lineno)
            ]
            for one in here:
                one.seen = True
            pattern, flags = _constant(node), _flags(node)
            if pattern is not None and flags is not None:
                found.append(Found(where, pattern, flags, methods))
            elif _is_escaped(node):
                continue
            elif not _runs_at_import(names, module, node):
                offences.append(
                    f"{where} has a pattern or flags that are known only when it runs: compile constants at the top"
                )
            elif module.path not in imported:
                offences.append(f"{where} is no constant, in a module that needs {' or '.join(HEAVY)}")
            elif not here:
                offences.append(f"{where} was not run by importing the module")
            else:
                found += [Found(where, one.pattern, one.flags, methods) for one in here]
    offences += [
        f"{one.file}:{one.line} compiles in a way that is not seen: call re.compile"
        for one in compiled
        if not one.seen and Path(one.file) in paths
    ]
    return list(dict.fromkeys(found)), offences


def _import(root: Path, paths: Sequence[Path]) -> tuple[list[_Compiled], set[Path]]:
    """Import modules; return the patterns compiled meanwhile, and the modules that could be imported."""
    compiled: list[_Compiled] = []
    inner = re._compile  # type: ignore[attr-defined]

    def compile_(pattern: Any, flags: Any) -> Any:
        made = inner(pattern, flags)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == re.__file__:
            frame = frame.f_back
        if frame is not None:
            written = made.pattern if isinstance(made.pattern, str) else made.pattern.decode("latin-1")
            compiled.append(_Compiled(frame.f_code.co_filename, frame.f_lineno, written, made.flags))
        return made

    re._compile = compile_  # type: ignore[attr-defined]
    sys.path.insert(0, str(root))
    sys.modules.update(dict.fromkeys(HEAVY))  # type: ignore[arg-type]
    imported = set()
    try:
        for path in paths:
            try:
                importlib.import_module(
                    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                )
            except ImportError as error:
                if not any(heavy in str(error) for heavy in HEAVY):
                    raise
            else:
                imported.add(path)
    finally:
        re._compile = inner  # type: ignore[attr-defined]
    return compiled, imported


def _re_attribute(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
        return node.attr
    return None


def _hiding(module: _Module, node: ast.AST) -> Iterator[str]:
    """Why patterns at `node` could be missed."""
    if isinstance(node, ast.ImportFrom) and node.module in ("re", "regex", "re2"):
        yield f"imports from {node.module}: import re, so that patterns are seen"
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name in ("regex", "re2") or (alias.name == "re" and alias.asname):
                yield f"imports {alias.name}{f' as {alias.asname}' if alias.asname else ''}: import re, so that patterns are seen"
    if isinstance(node, ast.Name) and node.id == "re" and not isinstance(module.parents[node], ast.Attribute):
        yield "passes the module re on"
    name = _re_attribute(node)
    if name is not None and not (name.isupper() or name in _HARMLESS):
        parent = module.parents[node]
        if name not in _CALLS or not (isinstance(parent, ast.Call) and parent.func is node):
            yield f"uses re.{name} without calling it"


def _constant(call: ast.Call) -> str | None:
    keyword = next((keyword.value for keyword in call.keywords if keyword.arg == "pattern"), None)
    value = call.args[0] if call.args else keyword
    if isinstance(value, ast.Constant) and isinstance(value.value, str | bytes):
        return value.value if isinstance(value.value, str) else value.value.decode("latin-1")
    return None


def _flags(call: ast.Call) -> int | None:
    """The flags of a call of `re`; None where they are not made of constants of `re`."""
    position = {"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(str(_re_attribute(call.func)), 2)
    value = next((keyword.value for keyword in call.keywords if keyword.arg == "flags"), None)
    if value is None and len(call.args) > position:
        value = call.args[position]
    if value is None:
        return 0
    names = value
    flags = 0
    while isinstance(names, ast.BinOp):
        flags |= getattr(re, _re_attribute(names.right) or "", 0)
        names = names.left
    name = _re_attribute(names)
    return None if name is None else flags | getattr(re, name)


def _names(modules: Sequence[_Module]) -> _Read:
    """Uses of each name: as a variable, as an attribute, or imported."""
    uses: dict[str, list[tuple[_Module, ast.AST]]] = {}
    for module in modules:
        for node in module.parents:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                uses.setdefault(node.id, []).append((module, node))
            elif isinstance(node, ast.Attribute):
                uses.setdefault(node.attr, []).append((module, node))
            elif isinstance(node, ast.alias):
                uses.setdefault(node.name, []).append((module, node))
    return uses


def _is_escaped(call: ast.Call) -> bool:
    """Whether the pattern is the result of `re.escape`, and so a literal text."""
    return bool(call.args) and isinstance(call.args[0], ast.Call) and _re_attribute(call.args[0].func) == "escape"


def _runs_at_import(read: _Read, module: _Module, node: ast.AST) -> bool:
    """Whether `node` runs only while its module is imported: at module level, or in a function called only there."""
    inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    functions = [one for one in module.above(node) if isinstance(one, inside)]
    if not functions:
        return True
    if len(functions) > 1 or not isinstance(functions[0], ast.FunctionDef):
        return False
    uses = [
        (other, use)
        for other, use in read.get(functions[0].name, ())
        if other is module or not isinstance(use, ast.Name)
    ]
    return all(
        isinstance(use, ast.Name)
        and isinstance(call := other.parents[use], ast.Call)
        and call.func is use
        and not any(isinstance(one, inside) for one in other.above(call))
        for other, use in uses
    )


def _methods(read: _Read, module: _Module, call: ast.Call) -> tuple[str, ...]:
    """The methods that match text against the pattern of `call`: those used on the name assigned to it. All methods if in doubt."""
    name = _re_attribute(call.func)
    if name != "compile":
        return (str(name),)
    parent = module.parents[call]
    if isinstance(parent, ast.Attribute) and parent.attr in _METHODS:
        return (parent.attr,)
    statement = next((one for one in module.above(call) if isinstance(one, ast.Assign | ast.AnnAssign)), None)
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if statement else []
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    methods: set[str] = set()
    for other, node in (place for one in names for place in read.get(one, ())):
        if isinstance(node, ast.alias):
            methods |= _METHODS
        elif other is module or isinstance(node, ast.Attribute):
            methods |= _used(other, node)
    return tuple(sorted(methods or _METHODS))


def _used(module: _Module, node: ast.AST) -> frozenset[str]:
    """The methods used on `node`, a pattern or a container of patterns."""
    parent = module.parents[node]
    if isinstance(parent, ast.Attribute):
        return frozenset({parent.attr} & _METHODS)
    if isinstance(parent, ast.For | ast.comprehension) and parent.iter is node:
        names = {one.id for one in ast.walk(parent.target) if isinstance(one, ast.Name)}
        body = module.parents[parent] if isinstance(parent, ast.comprehension) else parent
        loads = [one for one in ast.walk(body) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)]
        attributes = [module.parents[one] for one in loads if one.id in names]
        return frozenset(one.attr for one in attributes if isinstance(one, ast.Attribute)) & _METHODS or _METHODS
    return _METHODS
