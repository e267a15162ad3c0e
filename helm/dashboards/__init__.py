"""The Grafana dashboards as code: `python -m helm.dashboards` writes them to the chart, `queries` lists what they ask.

One file for each dashboard; how panels look is in `panels`, how their queries are put is in `promql`.
"""
