"""Retrieval and grounded answers: search quality and speed, support scoring, added time to first token.

The search, the parsers and the scores themselves are in `serve.retrieval`; tools that compute are in `serve.tools`.
"""
