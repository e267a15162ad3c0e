"""Client commands of `gearbox`: chat, route, keys, documents, top. They use a running platform's HTTP API.

Commands that start, stop or build something are in `deployments.cli` and `compression.cli`.
"""
