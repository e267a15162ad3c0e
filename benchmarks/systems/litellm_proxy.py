"""LiteLLM's proxy as a baseline, in a separate virtual environment, because its pins clash with the engine's."""

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.lib.processes import System
from benchmarks.systems.mock_engine import MODEL

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-bench"
REQUIREMENT = "litellm[proxy]==1.106.2"
#: No price download at start, no telemetry.
QUIET = {
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
}


class NotInstalled(Exception):
    """LiteLLM could not be installed; the message is the installer's output."""


def install() -> None:
    """Create the virtual environment like `scripts/install` creates the others. Raises `NotInstalled`."""
    stamp = ENVIRONMENT / f".installed-{REQUIREMENT}"
    if stamp.exists():
        return
    uv = ROOT / ".venv-uv" / "bin" / "uv"
    if not uv.exists():
        raise NotInstalled(f"{uv} is missing; 'make install' makes it")
    script = (
        f". scripts/registries && '{uv}' venv --quiet --clear --python python3.11 '{ENVIRONMENT}' && "
        f"'{uv}' pip install --quiet --python '{ENVIRONMENT}/bin/python' '{REQUIREMENT}'"
    )
    print(f"installing {REQUIREMENT} into {ENVIRONMENT.name}", flush=True)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(" ".join(done.stderr.split())[-600:])
    stamp.touch()


def version() -> str:
    """The installed version."""
    code = "from importlib.metadata import version; print(version('litellm'))"
    command = [str(ENVIRONMENT / "bin/python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def proxy(port: int, *backends: str, model: str = MODEL) -> System:
    """The proxy with one worker, forwarding `model` to the OpenAI servers at `backends`, caching and logging nothing.

    Of several backends it chooses one for each request; a request that fails is retried at another.
    """
    config = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{backend}/v1", "api_key": "none"},
            }
            for backend in backends
        ],
        "litellm_settings": {"telemetry": False},
        **({"router_settings": {"num_retries": 3}} if len(backends) > 1 else {}),
    }
    file = Path(tempfile.mkdtemp(prefix="gb-")) / "litellm.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = [str(ENVIRONMENT / "bin/litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    return System("litellm", [*command, "--num_workers", "1"], QUIET)
