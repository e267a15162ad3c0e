"""Variants: what each technique costs and gives, distillation's settings, a larger model."""
