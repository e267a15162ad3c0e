"""Building variants: model sources, recipe steps with checkpoints, export, and the cache of variants."""
