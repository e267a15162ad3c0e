"""Answer verification: support and faithfulness scores, and sentence selection.

The pipelines that search are in `serve.retrieval`; what a request without support gets is decided in `serve.gateway.grounding`.
"""
