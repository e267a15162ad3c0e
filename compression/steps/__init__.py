"""One module per technique: prune, width pruning, vocabulary, quantize, sparsify, LoRA; and what they share.

Distillation is in `compression.distill`; a step's settings are in `compression.recipe`, their order in `compression.build`.
"""
