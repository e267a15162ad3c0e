"""Distillation: losses, teacher, trainer, several GPUs, completions by the teacher."""
