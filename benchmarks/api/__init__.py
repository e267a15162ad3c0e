"""The HTTP API under generated requests, valid and invalid."""
