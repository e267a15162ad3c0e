"""Quality, speed and size of variants: each compression technique, distillation losses, a larger model."""
