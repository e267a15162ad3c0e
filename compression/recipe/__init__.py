"""Recipes: how a variant's weights are made, as data, and what can be refused before weights are loaded."""
