"""Tools: calculator, clock, intent detection (tools without a model), HTTP tools, and the tool-calling agent.

When a request gets a tool's answer is decided in `serve.gateway.grounding`; the document search is in `serve.retrieval`.
"""
