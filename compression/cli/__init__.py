"""The commands `gearbox compress`, `evaluate`, `profile` and `report`. Free of torch: work runs in subprocesses."""
