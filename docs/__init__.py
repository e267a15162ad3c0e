"""The pages of the documentation, and `generate`, which writes those of reference/ that come from the code."""
