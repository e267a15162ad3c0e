"""Quality, speed and size of variants: each compression technique, distillation losses, a larger model.

How a variant is built and measured for its card is in `compression`.
"""
