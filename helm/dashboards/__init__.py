"""The Grafana dashboards as code: `python -m helm.dashboards` writes them to the chart, `queries` lists their queries.

One file for each dashboard; `panels` has the builders of panels, `promql` those of queries.
"""
