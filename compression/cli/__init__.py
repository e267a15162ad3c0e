"""The commands `gearbox compress`, `evaluate`, `profile` and `report`. Does not import torch: the work runs in subprocesses.

`deployments.cli` registers them and has the commands that start a platform; those of a running one are in `serve.cli`.
"""
