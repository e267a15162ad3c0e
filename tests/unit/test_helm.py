"""The chart, by the real Helm engine."""

from pathlib import Path

import helm_python as helm
import yaml

from serve.config import PlatformConfig

CHART = Path(__file__).resolve().parents[2] / "helm/gearbox"


def test_the_chart_is_lint_clean_and_renders_a_valid_configuration() -> None:
    assert helm.lint(str(CHART))["errors"] == []
    chart = helm.Chart.load(str(CHART))
    rendered = chart.render({}, name="demo", namespace="default")
    text = "\n---\n".join(rendered.values())
    documents = [document for document in yaml.safe_load_all(text) if document]
    assert [document["kind"] for document in documents] == ["ConfigMap"]
    settings = yaml.safe_load(documents[0]["data"]["platform.yaml"])
    settings["access"]["keys_file"] = None
    settings["access"]["open"] = True
    assert PlatformConfig(**settings).variants[0].name == "full"
