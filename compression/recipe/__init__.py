"""Recipes: the schema of the steps that build a variant, and their validation before weights are loaded."""
