"""Source rules for the product's packages: no `assert`, no changes of the environment or state at import time, no messages of
unexpected exceptions in logs and responses.

`python -O` drops asserts; import-time effects depend on the import order; all users of a module share its state; a message may quote
a prompt or a secret.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("serve", "deployments", "compression")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
CHANGES = {
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert",
    "intersection_update", "move_to_end", "pop", "popitem", "popleft", "put", "put_nowait", "remove", "reverse", "setdefault",
    "sort", "subtract", "symmetric_difference_update", "update", "__delitem__", "__setitem__", "__ior__",
}  # fmt: skip
ENVIRONMENT_CHANGES = {"os.putenv", "os.unsetenv", "os.environ.clear", "os.environ.pop", "os.environ.popitem",
                       "os.environ.setdefault", "os.environ.update", "os.environ.__setitem__"}  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def asserts(tree: ast.Module) -> Iterator[int]:
    """Lines with an `assert`."""
    yield from (node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are run when the module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, FUNCTIONS):
            defaults = [*child.args.defaults, *(one for one in child.args.kw_defaults if one)]
            for part in (*getattr(child, "decorator_list", ()), *defaults):
                yield from (part, *at_import(part))
        else:
            yield from at_import(child)


def environment_changes(tree: ast.Module) -> Iterator[int]:
    """Lines that change the environment while the module is imported."""
    for node in at_import(tree):
        if (
            (isinstance(node, ast.Call) and _name(node.func) in ENVIRONMENT_CHANGES)
            or (
                isinstance(node, ast.Subscript)
                and not isinstance(node.ctx, ast.Load)
                and _name(node.value) == "os.environ"
            )
            or (isinstance(node, ast.AugAssign) and _name(node.target) == "os.environ")
        ):
            yield node.lineno


def shared_state(tree: ast.Module) -> Iterator[int]:
    """Lines of functions that change what belongs to a module: this one's, or one whose names it imports."""
    owned = {name for node in tree.body for name in _bound(node)}
    for function in (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)):
        local = _locals(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                yield node.lineno
            elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                changed = node.func.value
            else:
                continue
            if isinstance(node, ast.Global):
                continue
            root = _root(changed)
            if root in owned - local - {"os", "sys"}:  # the process's own things are a matter of entry points
                yield node.lineno


def shown_messages(tree: ast.Module) -> Iterator[int]:
    """Lines of logs and responses that show the message of an unexpected exception."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (
            _name(node.func).endswith("_LOG.exception") or any(one.arg == "exc_info" for one in node.keywords)
        ):
            yield node.lineno
        if isinstance(node, ast.ExceptHandler) and node.name and _name(node.type) in ("Exception", "BaseException"):
            calls = [call for one in node.body for call in ast.walk(one) if isinstance(call, ast.Call)]
            for call in calls:
                if "_LOG." in _name(call.func) or _name(call.func).endswith("RequestError"):
                    parts = [part for one in (*call.args, *call.keywords) for part in _shown(one)]
                    yield from (call.lineno for part in parts if isinstance(part, ast.Name) and part.id == node.name)


def _shown(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression whose text is shown: all but what is reduced to its origin or type."""
    if not (isinstance(node, ast.Call) and _name(node.func) in ("origin_of", "type")):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _shown(child)


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names of values that a statement of a module binds; functions and classes are no state, but their attributes are."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    else:
        yield from (one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))


def _locals(function: ast.AST) -> set[str]:
    names = {one.arg for one in ast.walk(function) if isinstance(one, ast.arg)}
    names |= {one.id for one in ast.walk(function) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    imports = (one for one in ast.walk(function) if isinstance(one, ast.Import | ast.ImportFrom))
    return names | {(alias.asname or alias.name).split(".")[0] for one in imports for alias in one.names}


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


EXCEPTIONS = {
    # docutils looks directives up in its module only; in a process that reads one document, and put back after it
    ("state", "serve/retrieval/ingest/formats/rst.py"),
    # the commands of the compression run for their user, who sees their output alone
    *(("message", str(file.relative_to(ROOT))) for file in FILES if file.is_relative_to(ROOT / "compression")),
    # prometheus_client has no other way to replace the class of its files; a gateway's process calls it, before it has metrics
    ("state", "serve/telemetry/metrics_files.py"),
}
RULES = {"assert": asserts, "environment": environment_changes, "state": shared_state, "message": shown_messages}


@pytest.mark.parametrize("rule", RULES)
def test_no_file_of_the_product_breaks_the_rule(rule: str):
    places = [(file.relative_to(ROOT), n) for file in FILES for n in RULES[rule](ast.parse(file.read_text()))]
    assert [f"{file}:{n}" for file, n in places if (rule, str(file)) not in EXCEPTIONS] == []


@pytest.mark.parametrize(
    ("rule", "source", "lines"),
    [
        ("assert", "def f(x):\n    assert x", [2]),
        ("environment", "import os\nos.environ['A'] = 'b'", [2]),
        ("environment", "import os\nif x:\n    os.environ.setdefault('A', 'b')", [3]),
        ("environment", "import os\nclass A:\n    os.putenv('A', 'b')", [3]),
        ("environment", "import os\ndel os.environ['A']", [2]),
        ("environment", "import os\nA = os.environ['A']\nB = os.environ.get('B')", []),
        ("environment", "import os\ndef main():\n    os.environ['A'] = 'b'", []),
        ("state", "A = {}\ndef f():\n    A['x'] = 1", [3]),
        ("state", "A = []\ndef f():\n    A.append(1)", [3]),
        ("state", "A = []\ndef f():\n    A[:] = [1]", [3]),
        ("state", "A: dict = dict()\nclass B:\n    def f(self):\n        del A['x']", [4]),
        ("state", "A = 1\ndef f():\n    global A\n    A = 2", [3]),
        ("state", "from serve.x import A\ndef f():\n    A.update(b=1)", [3]),
        ("state", "from serve import x\ndef f():\n    x.A['b'] = 1", [3]),
        ("state", "def f():\n    f.calls = 1", [2]),
        ("state", "class A:\n    all = []\n    def f(self):\n        A.all.append(1)", [4]),
        ("state", "A = {}\ndef f():\n    A = {}\n    A['x'] = 1", []),
        ("state", "A = {'a': 1}\ndef f(x):\n    return A[x]", []),
        ("state", "def f(self):\n    self.a['x'] = 1\n    self.b.append(2)", []),
        ("message", "try:\n    f()\nexcept Exception:\n    _LOG.exception('failed')", [4]),
        ("message", "self._log.error('failed', exc_info=error)", [1]),
        ("message", "try:\n    f()\nexcept Exception as e:\n    _LOG.error('failed: %s', e)", [4]),
        ("message", "try:\n    f()\nexcept Exception as e:\n    raise RequestError(500, f'failed: {e}') from e", [4]),
        (
            "message",
            "try:\n    f()\nexcept Exception as e:\n    _LOG.error('%s %s', origin_of(e), type(e).__name__)",
            [],
        ),
        ("message", "try:\n    f()\nexcept OSError as e:\n    _LOG.error('failed: %s', e)", []),
    ],
)
def test_the_rule_sees_what_it_is_for(rule: str, source: str, lines: list[int]):
    assert list(dict.fromkeys(RULES[rule](ast.parse(source)))) == lines


def test_the_walk_sees_the_code():
    assert len(FILES) > 100
