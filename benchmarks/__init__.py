"""Reproducible measurements with their baselines, one package per subject: `python -m benchmarks.SUBJECT.NAME`.

Each writes `results/NAME.json`, a plot and rows of `results/claims.json`. Imports point down: subjects, systems, reporting, lib.
"""
