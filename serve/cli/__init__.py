"""Client commands of `gearbox`: chat, status, keys, documents, top. They talk HTTP to a running platform.

Commands that start, stop or build something are in `deployments.cli` and `compression.cli`.
"""
