"""Fuzzing of the HTTP API with generated requests, valid and invalid."""
