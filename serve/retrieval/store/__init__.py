"""The document store: PostgreSQL with pgvector, and metadata filters as SQL."""
