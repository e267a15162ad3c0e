"""What the gateway adds to an engine's latency and takes of its throughput."""
