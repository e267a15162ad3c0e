"""Reproducible measurements with their baselines: each command writes `results/NAME.json` and a plot.

Nothing here runs in service or in the tests; docs/reference/claims.md lists the commands.
"""
