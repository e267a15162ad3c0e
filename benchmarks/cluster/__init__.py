"""Cluster operations under load (upgrades, scaling, failures), and platform start-up time."""
