"""Layering: imports only point down, from deployments to serve and compression."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"ray", "vllm", "torch"}
PACKAGES = ("serve", "deployments", "compression")


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by the full name"
            yield str(node.module)


def offenders(package: str, forbidden) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for module in imports(file)
        if forbidden(module)
    ]


def test_the_walk_sees_the_code():
    assert all(len(list((ROOT / package).rglob("*.py"))) > 5 for package in PACKAGES)
    assert "ray" in {module.split(".")[0] for module in imports(ROOT / "deployments/gateway.py")}


def test_serve_is_free_of_ray_vllm_torch_and_of_what_is_above_it():
    above = HEAVY | {"deployments", "compression", "transformers", "tests", "benchmarks"}
    assert offenders("serve", lambda module: module.split(".")[0] in above) == []


def test_only_deployments_imports_ray():
    for package in ("serve", "compression"):
        assert offenders(package, lambda module: module.split(".")[0] == "ray") == []


def test_compression_knows_of_serve_only_the_card_and_how_users_yaml_is_read():
    def foreign(module: str) -> bool:
        return module.split(".")[0] in ("serve", "deployments") and module not in (
            "serve.card",
            "serve.config.yaml_file",
        )

    assert offenders("compression", foreign) == []


@pytest.mark.parametrize(
    "modules", ["serve.gateway.app, serve.telemetry.metrics_server", "deployments.cli, deployments.weights"]
)
def test_importing_the_gateway_or_the_command_loads_nothing_heavy(modules):
    code = (
        f"import sys, {modules}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY | {'transformers'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
