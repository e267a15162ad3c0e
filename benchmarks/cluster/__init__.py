"""Changes of a running cluster under load, and the time until a platform answers."""
