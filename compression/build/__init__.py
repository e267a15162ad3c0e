"""Building variants: the source of a model, the steps of a recipe with checkpoints, export, and the cache of variants."""
