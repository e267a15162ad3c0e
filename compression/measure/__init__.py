"""Measuring a variant through the engine that serves it: quality, tasks, latency, throughput, memory.

The card is `serve.card`; reports are in `compression.report`, comparisons of techniques in `benchmarks.compression`.
"""
