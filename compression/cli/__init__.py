"""The commands `gearbox compress`, `evaluate`, `profile` and `report`. Does not import torch: the work runs in subprocesses."""
