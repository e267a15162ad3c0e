"""Offline model compression: build variants of a model and measure their quality, speed and cost. Imports point down this list only:

cli, measure, report, build, distill, steps, recipe; then errors.py, files.py, hardware.py, progress.py, text.py. Of the rest of
Gearbox it knows `serve.card` and `serve.config.yaml_file`.
"""
