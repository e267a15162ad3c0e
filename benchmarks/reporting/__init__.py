"""Result files, claims, tables and plots, written after a measurement.

Measurements are in the packages of their subjects; the pages that show tables and plots are in `docs/`.
"""
