"""Contract with vLLM: the undocumented APIs that Gearbox uses exist. Reads vLLM's source, because importing it is slow.

`deployments/cpu_engine.py` and `deployments/engine_platform.py` hold these parts; a failure names what depends on the changed one.
"""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.find_spec("vllm")
VLLM = Path((SPEC.submodule_search_locations or [""])[0]) if SPEC else None
pytestmark = pytest.mark.skipif(VLLM is None, reason="vLLM is not installed")
VERIFIED = "0.32.0"

#: (file of vLLM, what must be in it, what in Gearbox depends on it)
PARTS = [
    (
        "plugins/__init__.py",
        r'"vllm\.platform_plugins"',
        "the entry point in pyproject.toml that names engine_platform",
    ),
    ("platforms/__init__.py", r"^def cpu_platform_plugin\(\) -> str \| None:", "engine_platform.cpu_platform"),
    ("platforms/cpu.py", r"^class CpuPlatform\(", "cpu_engine.FewCoresPlatform"),
    (
        "platforms/cpu.py",
        r"    @property\n    def supported_dtypes\(self\)",
        "float32 on processors without 16-bit kernels",
    ),
    (
        "platforms/cpu.py",
        r"    @classmethod\n    def check_and_update_config\(cls, vllm_config",
        "the model in the engine core's process",
    ),
    ("v1/executor/uniproc_executor.py", r"^class UniProcExecutor\(", "the model in the engine core's process"),
    (
        "v1/executor/abstract.py",
        r"isinstance\(distributed_executor_backend, str\):\s+executor_class = resolve_obj_by_qualname",
        "the model in the engine core's process: the executor is given by its qualified name",
    ),
    ("envs.py", r"VLLM_CPU_OMP_THREADS_BIND", "deployments/local.yaml and cpu_engine: OpenMP threads are not bound"),
    ("v1/metrics/loggers.py", r'"vllm:num_requests_running"', "replicas and drain: load of the engines"),
    ("v1/metrics/loggers.py", r'"vllm:num_requests_waiting"', "replicas and drain: load of the engines"),
    ("v1/metrics/loggers.py", r'"vllm:kv_cache_usage_perc"', "replicas: use of the KV cache"),
    ("v1/metrics/loggers.py", r'"vllm:prompt_tokens"', "replicas: whether an engine does anything"),
    ("v1/metrics/loggers.py", r'"vllm:generation_tokens"', "replicas: whether an engine does anything"),
    (
        "v1/core/sched/scheduler.py",
        r"# We must return the stats even if there are no request\s+# outputs this step\.",
        "replica_health: the use of the KV cache changes while a prompt is read in parts",
    ),
    (
        "entrypoints/serve/instrumentator/health.py",
        r'@router\.get\("/health"(?s:.*)except EngineDeadError:\s+return Response\(status_code=503\)',
        "engine_client: a replica whose engine is dead is ejected",
    ),
    ("v1/metrics/loggers.py", r'"vllm:cache_config_info"', "replicas: size of the prefix cache"),
    ("config/cache.py", r"^    kv_cache_size_tokens: int \| None", "replicas: size of the prefix cache"),
    ("config/cache.py", r"^    enable_prefix_caching: bool", "replicas: size of the prefix cache"),
    ("entrypoints/launchers/cli_args.py", r"enable_per_request_metrics", "variant: timings in every response"),
    ("entrypoints/launchers/cli_args.py", r"enable_prompt_tokens_details", "variant: cached tokens in every response"),
    (
        "entrypoints/openai/chat_completion/protocol.py",
        r"^class ChatCompletionRequest\((?s:.*)^    priority: int = Field\(\s+default=0,\s+ge=_INT64_MIN",
        "generation: a deadline in ms is the priority of a chat",
    ),
    (
        "entrypoints/openai/completion/protocol.py",
        r"^    priority: int = Field\(\s+default=0,\s+ge=_INT64_MIN",
        "generation: a deadline in ms is the priority of a completion",
    ),
    ("engine/arg_utils.py", r"^    scheduling_policy: SchedulerPolicy", "platform: engines schedule by priority"),
    ("v1/request.py", r"return self\.priority < other\.priority", "generation: the earliest deadline is first"),
    (
        "v1/core/sched/scheduler.py",
        r"preempted_req = max\(\s+self\.running,\s+key=lambda r: \(r\.priority, r\.arrival_time\)",
        "docs/design/routing.md: the latest deadline is preempted",
    ),
    ("benchmarks/serve.py", r"^def add_cli_args\(parser", "benchmarks/lib/vllm_bench.py"),
    ("benchmarks/serve.py", r"^async def main_async\(args", "benchmarks/lib/vllm_bench.py"),
]
PUBLIC = {"vllm", "vllm.config", "vllm.outputs", "vllm.sampling_params"}
USERS = {"deployments/cpu_engine.py", "deployments/engine_platform.py", "benchmarks/lib/vllm_bench.py"}


@pytest.mark.parametrize(("file", "pattern", "consequence"), PARTS)
def test_vllm_has_what_gearbox_depends_on(file: str, pattern: str, consequence: str):
    path = VLLM / file
    assert path.is_file() and re.search(pattern, path.read_text(), re.MULTILINE), (
        f"vLLM is not as in {VERIFIED}, with which Gearbox was verified: vllm/{file} has no {pattern}. "
        f"Depends on it: {consequence}"
    )


def test_no_other_file_uses_vllms_undocumented_modules():
    found = set()
    for package in ("serve", "deployments", "compression", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(module.split(".")[0] == "vllm" and module not in PUBLIC for module in modules):
                    found.add(str(file.relative_to(ROOT)))
    assert found == USERS
