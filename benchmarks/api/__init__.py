"""Fuzzing of the HTTP API with generated requests, valid and invalid.

The OpenAPI description itself is tested in `tests/unit/gateway/test_openapi.py`.
"""
