"""Building variants: model sources, recipe steps with checkpoints, export, and the cache of variants.

Techniques are in `compression.steps` and `compression.distill`; finished variants are measured by `compression.measure`.
"""
