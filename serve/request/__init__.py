"""One request as data: the parsed call, its caller, its grounding, its attempts and its trace.

What is done with it is in `serve.gateway`; how a variant is chosen is in `serve.routing`.
"""
