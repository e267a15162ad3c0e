"""vLLM platform plugin: the entry point that names the platform class.

A module of its own, because vLLM calls it before `cpu_engine` can be imported.
"""


def cpu_platform() -> str | None:
    """Called by vLLM: Gearbox's CPU platform where vLLM was built for CPUs, otherwise None for vLLM's own choice."""
    from vllm.platforms import cpu_platform_plugin

    return "deployments.cpu_engine.FewCoresPlatform" if cpu_platform_plugin() else None
