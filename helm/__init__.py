"""Generators of the chart's schema, README and dashboards; the chart is in `gearbox/`."""
