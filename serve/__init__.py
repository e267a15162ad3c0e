"""The request path of Gearbox: protocol, budget, catalog, routing, limits, metrics and the client commands.

Free of ray, torch and vllm: what runs where is in `deployments`, what makes the weights is in `compression`.
"""
