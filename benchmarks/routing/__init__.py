"""Routing policies: goodput on the live platform and in the simulator, and the latency of a routing decision."""
