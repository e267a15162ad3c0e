"""Telemetry overhead: added CPU time and latency of metrics, logs and traces.

The whole overhead of a gateway is in `benchmarks.overhead`; metrics themselves are in `serve.telemetry`.
"""
