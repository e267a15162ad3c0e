"""Offline: turn a model into variants and measure what each costs and gives. Imports point down this list only:

cli, measure, report, build, distill, steps, recipe; then errors.py, files.py, hardware.py, progress.py, text.py. Of the rest of
Gearbox it knows `serve.card` and `serve.config.yaml_file`.
"""
