"""Distillation: losses, teacher, trainer, several GPUs, completions by the teacher.

The order of steps and their checkpoints are in `compression.build`; other techniques are in `compression.steps`.
"""
