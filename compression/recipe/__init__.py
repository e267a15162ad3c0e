"""Recipes: the schema of the steps that build a variant, and their validation before weights are loaded.

The recipes that come with Gearbox are in `compression/recipes/`; `compression.build` runs one.
"""
