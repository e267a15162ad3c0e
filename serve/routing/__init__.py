"""Routing: the catalog of variants, latency prediction, the router and its policy. Pure: no I/O, no clock.

The same objects run in the gateway and in the simulator (`benchmarks.routing.simulate`).
"""
