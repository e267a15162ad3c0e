"""Tells vLLM which platform class to use. Apart from that class, because it is asked before vLLM's own can be imported."""


def cpu_platform() -> str | None:
    """Called by vLLM: our CPU platform where vLLM was built for CPUs, else None, so that it chooses for itself."""
    from vllm.platforms import cpu_platform_plugin

    return "deployments.cpu_engine.FewCoresPlatform" if cpu_platform_plugin() else None
