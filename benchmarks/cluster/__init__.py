"""Cluster operations under load (upgrades, scaling, failures), faults, soak and overload of a platform, and its start-up time."""
