"""Configuration: the platform's YAML file, its sections, overrides from environment variables, addresses, HTTP tool settings.

Budgets are in `serve.budget`; the chart's values are in `helm/gearbox/values.yaml`, example configurations in `deployments/`.
"""
