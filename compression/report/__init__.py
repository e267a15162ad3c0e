"""Reports over variant cards: an HTML page, plots, the Pareto front."""
