"""The retrieval service: ingest documents, store and search them, check answers against them.

When a request is grounded is decided in `serve.gateway.grounding`; tools that models call are in `serve.tools`.
"""
