"""Telemetry: request metrics, logs and traces, the metrics server, and the Prometheus text format.

Dashboards and alert rules are in `helm/`.
"""
