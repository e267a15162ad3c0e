"""Every command of the README and the docs runs as written, against the started platform."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.state import load_state
from tests.support.platform import KEYS, ROOT, Platform

pytestmark = pytest.mark.platform
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(language, block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, (language, block) in enumerate(re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_a_documented_command_works(platform: Platform, language: str, block: str) -> None:
    block = block.replace("http://127.0.0.1:8000", platform.url).replace("http://127.0.0.1:9464", platform.metrics_url)
    state = load_state(platform.state_dir)
    assert state is not None
    environment = {
        **os.environ,
        "GEARBOX_STATE_DIR": str(platform.state_dir),
        "GEARBOX_URL": platform.url,
        "GEARBOX_METRICS_URL": platform.metrics_url,
        "GEARBOX_API_KEY": KEYS["alice"]["key"],
        "GEARBOX_DATABASE": state.database,
        "GEARBOX_EMBEDDER": state.embedder,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    assert result.stdout.strip()
    assert '"error"' not in result.stdout, result.stdout
