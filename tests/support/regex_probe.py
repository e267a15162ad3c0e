"""Find every regular expression of a package, and those that take more than linear time.

`collect` sees each call of `re` in the source, and each pattern that importing the package compiles; what it could not
see is reported, so that no pattern is missed. `slowness` builds strings from a pattern itself, the ones on which
backtracking repeats work, and measures CPU time. Run as a program in a process of its own: `python -m
tests.support.regex_probe ROOT PACKAGE...`, or with patterns as JSON on its standard input.
"""

import ast
import importlib
import json
import math
import random
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import FrameType
from typing import Any

# Not imported: patterns of modules that need them are read from the source.
HEAVY = ("torch", "ray", "vllm", "transformers")
CHARS = (3_000, 12_000)  # string sizes: all strings in the first, the slow ones in the second; see `slowness`
LONG_S = 0.0015  # CPU seconds for the first size above which a string is measured again
MAX_GROWTH = 9.0  # of CPU time from the first size to the second: 4 when linear, 16 when quadratic
LIMIT_S = 0.3  # CPU seconds for one string
STRINGS = 80  # maximum number of strings for one pattern

_SCANS = ("findall", "finditer", "split", "sub", "subn")
_METHODS = frozenset({"match", "fullmatch", "search", *_SCANS})
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


# --- strings on which a pattern backtracks


class _Pumps:
    """Pieces of texts: prefixes of whole matches, and what the pattern itself repeats."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._random = random.Random(repr(pattern))
        self._letters = "a1 -,.'\"`(/\n:[é!\t_A$=?*#<&{"
        self.repeated: dict[tuple[str, str], None] = {}  # (what may precede the piece, the piece)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parser.parse(pattern, flags)
        end = "\n" if tree.state.flags & re.MULTILINE else ""
        first, *others = self.samples(tree)
        cuts = [first[: at + 1] for at in range(0, len(first), 1 + len(first) // 30)]
        more = [sample[:at] for sample in others for at in range(1, len(sample) + 1)]
        more = self._random.sample(more, min(len(more), 30))
        self.begun = list(dict.fromkeys(f"{piece}{end}" for piece in [*cuts, first, *others[:10], *more] if piece))
        self._walk(tree, [""])
        for letter in dict.fromkeys(letter for _, pump in self.repeated.copy() for letter in pump[:8]):
            self._add("", letter)

    def _add(self, before: str, pump: str) -> None:
        if pump:
            self.repeated[before, pump] = None

    def _walk(self, tree: Iterable[Any], before: list[str]) -> None:
        """Add the pieces of each repeat; `before` is a text that the pattern may have matched before it."""
        for op, argument in tree:
            if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
                _, max_repeats, body = argument
                if max_repeats > 20:
                    pieces = self.samples(body)
                    for piece in pieces:
                        for start in dict.fromkeys([before[0], before[-1], ""]):
                            self._add(start, piece)
                        self._add(before[0], f"{piece} ")
                    for one, two in pairwise(pieces[:12]):
                        self._add(before[0], one + two)
                    self._add(before[0], "".join(self._random.choices(pieces, k=40)))
                self._walk(body, before)
            elif op is ops.BRANCH:
                for branch in argument[1]:
                    self._walk(branch, before)
            elif op is ops.SUBPATTERN:
                self._walk(argument[3], before)
            elif op is ops.ATOMIC_GROUP:
                self._walk(argument, before)
            elif op in (ops.ASSERT, ops.ASSERT_NOT):
                self._walk(argument[1], before)
            after = self._atom(op, argument)
            before = [before[0] + after[0], self._random.choice(before) + self._random.choice(after)]

    def samples(self, tree: Iterable[Any], most: int = 24) -> list[str]:
        """Texts that `tree` matches, apart from its assertions: the plainest first."""
        parts = [self._atom(op, argument) for op, argument in tree]
        found = {"".join(part[0] for part in parts): None}
        for at, part in enumerate(parts):
            for other in part[1:]:
                found["".join(p[0] for p in parts[:at]) + other + "".join(p[0] for p in parts[at + 1 :])] = None
        for _ in range(most):
            found["".join(self._random.choice(part) for part in parts)] = None
        if len(found) > most:
            rest = list(found)[1:]
            self._random.shuffle(rest)
            return [next(iter(found)), *rest[: most - 1]]
        return list(found)

    def _atom(self, op: Any, argument: Any) -> list[str]:
        if op is ops.LITERAL:
            return [chr(argument)]
        if op is ops.NOT_LITERAL:
            return [letter for letter in self._letters if letter != chr(argument)][:4]
        if op is ops.ANY:
            return ["a", " ", "1", "."]
        if op is ops.IN:
            return self._of_class(argument)
        if op is ops.BRANCH:
            found = [sample for branch in argument[1] for sample in self.samples(branch, 3)]
            return list(dict.fromkeys(found))
        if op is ops.SUBPATTERN:
            return self.samples(argument[3])
        if op is ops.ATOMIC_GROUP:
            return self.samples(argument)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
            min_repeats, max_repeats, body = argument
            once = self.samples(body, 12)
            found = [piece * min_repeats for piece in once[:1]] if min_repeats != 1 else once
            if max_repeats > min_repeats:
                found = [*found, *(piece * (min_repeats + 1) for piece in once)]
            return list(dict.fromkeys(found))
        return [""]  # an assertion, or a group that was matched before

    def _of_class(self, items: Sequence[Any]) -> list[str]:
        listed = [chr(one) for op, one in items if op is ops.LITERAL]
        listed += [chr(end) for op, one in items if op is ops.RANGE for end in one]
        matches = {category: re.compile(escape) for category, escape in _ESCAPES.items()}
        negated = any(op is ops.NEGATE for op, _ in items)

        def within(letter: str) -> bool:
            inside = any(
                (op is ops.LITERAL and one == ord(letter))
                or (op is ops.RANGE and one[0] <= ord(letter) <= one[1])
                or (op is ops.CATEGORY and matches[one].match(letter) is not None)
                for op, one in items
            )
            return inside != negated

        found = [letter for letter in [*([] if negated else listed), *self._letters] if within(letter)]
        return list(dict.fromkeys(found))[:6] or listed[:1] or ["a"]


_ESCAPES = {
    ops.CATEGORY_DIGIT: r"\d", ops.CATEGORY_NOT_DIGIT: r"\D", ops.CATEGORY_SPACE: r"\s", ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w", ops.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


# Characters that most classes lack, also after a line's end, and endings that may match.
_ENDS = ("\x00", "\n\x00~x", "", "\n")


def strings(pattern: str, flags: int) -> list[tuple[str, str, str]]:
    """Prefixes, pieces to repeat, and endings that are likely to fail; at most `STRINGS`, and restarted pieces."""
    pumps = _Pumps(pattern, flags)
    candidates = [(before, pump, after) for before, pump in pumps.repeated for after in _ENDS]
    if len(candidates) > STRINGS:
        random.Random(repr(pattern)).shuffle(candidates)
        candidates.sort(key=lambda one: _ENDS.index(one[2]) // 2)  # endings that are likely to fail come first
        candidates = candidates[: STRINGS // 2] + random.Random(repr(pattern)).sample(
            candidates[STRINGS // 2 :], STRINGS // 2
        )
    return [("", piece, _ENDS[1]) for piece in pumps.begun] + candidates


# --- time


class _TooLongError(Exception):
    """A string took more than `LIMIT_S`."""


def slowness(one: Found) -> str | None:
    """A string on which the pattern takes more than linear time; None if none was found."""
    compiled = re.compile(one.pattern, one.flags & ~re.UNICODE | 0)
    candidates = strings(one.pattern, one.flags)
    for method in dict.fromkeys("finditer" if name in _SCANS else name for name in one.methods):
        use = _use(getattr(compiled, method))
        for before, pump, after in candidates:
            description = (
                f"{one.where} {one.pattern[:70]!r} .{method} on {before[:40]!r} + {pump[:40]!r} * n + {after!r}"
            )
            # a long repeated piece fits fewer times into a text
            scale = 1 if before else math.isqrt(len(pump))
            small, large = (before + pump * (chars * scale // len(pump) + 1) + after for chars in CHARS)
            try:
                if _cpu_s(use, small, 1) < LONG_S:
                    continue
                first = _cpu_s(use, small, 3)
                # other load on the machine sometimes makes it longer, never shorter
                if all((second := _cpu_s(use, large, 1)) > MAX_GROWTH * max(first, LONG_S / 3) for _ in range(2)):
                    times = (
                        f"{first * 1000:.1f} ms for {len(small)} characters, {second * 1000:.1f} ms for {len(large)}"
                    )
                    return f"{description}: {times}"
            except _TooLongError:
                return f"{description}: did not end within {LIMIT_S} s"
    return None


def _use(method: Callable[[str], Any]) -> Callable[[str], None]:
    def use(text: str) -> None:
        found = method(text)
        if method.__name__ == "finditer":
            for _ in found:
                pass

    return use


def _cpu_s(use: Callable[[str], None], text: str, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        began = time.thread_time()  # not process_time, which advances in ticks while the timer runs
        try:
            use(text)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        best = min(best, time.thread_time() - began)
    return best


def _stop(*_: object) -> None:
    raise _TooLongError


def main() -> None:
    """Write as JSON the number of patterns, the slow ones, and the code that may hide some."""
    signal.signal(signal.SIGPROF, _stop)
    if sys.argv[1:]:
        found, offences = collect(Path(sys.argv[1]).resolve(), sys.argv[2:])
    else:
        found = [Found(str(at), *given) for at, given in zip(count(), json.load(sys.stdin))]
        offences = []
    slow = []
    for one in found:
        sys.stderr.write(f"{one.where} {one.pattern[:70]!r}\n")  # the last line names a pattern that hangs
        if said := slowness(one):
            slow.append(said)
    patterns = [[one.where, one.pattern, one.methods] for one in found]
    sys.stdout.write(json.dumps({"patterns": patterns, "slow": slow, "offences": offences}))


if __name__ == "__main__":
    main()
