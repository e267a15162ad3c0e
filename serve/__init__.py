"""The request path of Gearbox, free of ray, vllm and torch. Imports point down this list only:

cli, gateway, telemetry, request, retrieval, tools, routing, config; then budget.py, card.py, errors.py and validation.py, which import nothing
else of it but each other. What runs where (Ray Serve) is in `deployments`; how variants are made is in `compression`.
"""
