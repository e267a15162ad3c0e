"""Gateway overhead: latency added to an engine, and throughput lost.

Metrics, logs and traces are measured in `benchmarks.telemetry`, a routing decision in `benchmarks.routing.decision`.
"""
