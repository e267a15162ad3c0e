"""One module a kind of document, each with `read(data, charset)`, and what they share: encodings, headings, equations.

What decides the kind, and the limits around a reader, are in `serve.retrieval.ingest.convert`.
"""
