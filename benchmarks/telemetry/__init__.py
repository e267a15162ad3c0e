"""What telemetry adds to latency and takes of throughput."""
