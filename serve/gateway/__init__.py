"""The gateway: ASGI application, HTTP, authentication, rate limits, generation, grounding, documents API, web pages.

Which variant takes a request is decided in `serve.routing`; the Ray Serve deployment is `deployments.gateway`.
"""
