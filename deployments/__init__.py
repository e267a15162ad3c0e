"""Deployment: the Ray Serve deployments, starting and stopping a platform, weights on disk, and the configuration files.

The only package of the product that imports ray, as `from ray import serve as ray_serve`; Ray's private parts are in
`ray_internals` alone. The request path is in `serve`, which makes no use of ray; what makes and measures weights is in
`compression`.
"""
