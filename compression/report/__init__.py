"""Reports over variant cards: an HTML page, plots, the Pareto front.

What a card says is measured by `compression.measure`; tables and plots of the documentation are in `benchmarks.reporting`.
"""
