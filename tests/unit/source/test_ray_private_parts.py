"""Only deployments/ray_internals.py uses private parts of Ray.

tests/unit/deployments/test_ray_internals.py checks those against Ray itself.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PRODUCT = [
    file for package in ("serve", "deployments", "compression", "benchmarks") for file in (ROOT / package).rglob("*.py")
]
ALLOWED = ROOT / "deployments/ray_internals.py"
TEXT = re.compile(r"^ray::|ServeReplica|haproxy-serve|^RAY_SERVE_\w+$")


def private_uses(source: str, text: bool = True) -> Iterator[int]:
    """Lines that use a private part of Ray: imports, attributes and arguments that begin with `_`, titles and paths."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
        yield from (node.lineno for name in names if name.startswith("ray.") and re.search(r"\._|\.generated\b", name))
    uses_ray = any(
        (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
        for node in imports
    )
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if text and isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if TEXT.search(node.value):
                yield node.lineno
        elif uses_ray and isinstance(node, ast.Attribute) and _is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno
        elif uses_ray and isinstance(node, ast.Call):
            yield from (node.lineno for keyword in node.keywords if _is_private(keyword.arg or ""))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_file_uses_rays_private_parts():
    assert list(private_uses(ALLOWED.read_text())), "the rule sees what it is for"
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in PRODUCT
        if file != ALLOWED
        # benchmarks set Ray's environment for what they compare; that Ray reads it is checked in
        # tests/unit/deployments/test_ray_internals.py
        for line in private_uses(
            file.read_text(), text="benchmarks" not in file.relative_to(ROOT).parts or "ray::" in file.read_text()
        )
    ]
    assert found == [], "use deployments/ray_internals.py"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from ray.serve._private import constants", [1]),
        ("from ray.llm._internal.common.callbacks.base import CallbackBase", [1]),
        ("import ray._private.services", [1]),
        ("from ray.core.generated import gcs_pb2", [1]),
        ("from ray.experimental.internal_kv import _internal_kv_get", [1]),
        ("from ray import serve\ndef f(handle):\n    handle._init()", [3]),
        ("import ray\nray.init(_metrics_export_port=1)", [2]),
        ("TITLE = 'ray::ServeReplica:'", [1]),
        ("E = {'RAY_SERVE_ENABLE_HA_PROXY': '1'}", [1]),
        ("from ray import serve\nclass A:\n    def f(self):\n        self._x = serve.status()", []),
        ("def f(other):\n    other._x()", []),
        ("'''About ray::ServeReplica.'''", []),
    ],
)
def test_the_rule_sees_what_it_is_for(source: str, lines: list[int]):
    assert list(private_uses(source)) == lines
