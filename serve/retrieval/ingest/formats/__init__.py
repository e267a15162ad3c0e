"""Document parsers: one module per format with `read(data, charset)`, and shared encodings, headings and equations.

Format detection and limits are in `serve.retrieval.ingest.convert`.
"""
