"""Configuration: the platform's YAML file with its overrides from the environment, addresses, HTTP tools' settings."""
