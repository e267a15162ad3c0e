"""Offline: turns a model into variants and measures what each costs and gives.

Knows of `serve` only the card's schema; runs in an environment of its own, except for what measures through the engine.
"""
