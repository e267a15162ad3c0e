"""Routing policies: on the live platform, in the simulator, and the time that a decision takes."""
