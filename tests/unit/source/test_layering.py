"""What importing the gateway or the command loads. import-linter checks which package may import which."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"ray", "vllm", "torch", "transformers"}


@pytest.mark.parametrize(
    "modules", ["serve.gateway.app, serve.telemetry.metrics_server", "deployments.cli, deployments.weights"]
)
def test_importing_the_gateway_or_the_command_loads_nothing_heavy(modules):
    code = f"import sys, {modules}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
