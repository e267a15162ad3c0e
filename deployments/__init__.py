"""What runs where: the Ray Serve deployments, the platform's start and stop, and the deployment configs.

The only package that imports ray (as `from ray import serve as ray_serve`).
"""
