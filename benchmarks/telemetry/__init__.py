"""Telemetry overhead: added CPU time and latency of metrics, logs and traces."""
