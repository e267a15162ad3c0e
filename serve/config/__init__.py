"""Configuration: the platform's YAML file, overrides from environment variables, addresses, HTTP tool settings."""
