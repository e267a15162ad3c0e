"""Gateway overhead: latency added to an engine, and throughput lost."""
