"""Cluster operations under load (upgrades, scaling, failures), faults, soak and overload of a platform, and its start-up time.

Load on a platform that nothing disturbs is in `benchmarks.routing` and `benchmarks.overhead`.
"""
