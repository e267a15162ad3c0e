"""Systems under test: mock engine, gateways without telemetry, and the baselines (Ray Serve LLM, LiteLLM's proxy).

Load generators, processes and platform sessions are in `benchmarks.lib`.
"""
