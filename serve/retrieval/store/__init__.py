"""The document store: PostgreSQL with pgvector, and metadata filters as SQL.

Chunks and embeddings come from `serve.retrieval.ingest`; the store of rate limits is `serve.gateway.shared_store`.
"""
