"""Measuring a variant through the engine that serves it: quality, tasks, latency, throughput, memory."""
