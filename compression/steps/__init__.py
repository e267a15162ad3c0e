"""One module per technique: prune, width pruning, vocabulary, quantize, sparsify, LoRA; and what they share."""
