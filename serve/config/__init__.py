"""Configuration: the platform's YAML file, its sections, overrides from environment variables, addresses, HTTP tool settings."""
