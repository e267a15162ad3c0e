"""Prometheus rules: valid, documented, and each tested firing and not firing."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.support.documented_metrics import ROOT, unknown_names

FILES = sorted((ROOT / "helm/gearbox/rules").glob("*.yaml"))
TRIALS = sorted((ROOT / "tests/rules").glob("*.yaml"))
RULES = [
    rule for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
]  # fmt: skip
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDS = [rule for rule in RULES if "record" in rule]


def name(rule: dict[str, Any]) -> str:
    window = rule.get("labels", {}).get("window")
    return (rule.get("alert") or rule["record"]) + (f"-{window}" if window else "")


def trials(key: str) -> list[dict[str, Any]]:
    documents = [yaml.safe_load(file.read_text()) for file in TRIALS]
    return [trial for document in documents for test in document["tests"] for trial in test.get(key, [])]


def test_promtool_takes_the_rules(system_command: Callable[[str], str]) -> None:
    command = [system_command("promtool"), "check", "rules", *map(str, FILES)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", TRIALS, ids=lambda file: file.stem)
def test_the_rules_do_what_their_trials_say(file: Any, system_command: Callable[[str], str]) -> None:
    command = [system_command("promtool"), "test", "rules", str(file)]
    tested = subprocess.run(command, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_reads_what_is_there(rule: dict[str, Any]) -> None:
    assert unknown_names(rule["expr"]) == []
    for text in rule.get("annotations", {}).values():
        used = set(re.findall(r"\$labels\.(\w+)", text))
        assert all(unknown_names(f"{rule['expr']} * on ({label}) up") == [] for label in used)


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    kebab = re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower()
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{kebab}.md"
    page = (ROOT / "docs/runbooks" / f"{kebab}.md").read_text()
    assert page.startswith(f"# {rule['alert']}\n")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## How to see it", "## What to do", "## When to ignore it",
    ]  # fmt: skip
    if rule["expr"].startswith(("model", "sum", "(")):
        assert "$value" in rule["annotations"]["description"]


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_an_alert_is_tried_firing_and_not_firing(rule: dict[str, Any]) -> None:
    tried = [trial for trial in trials("alert_rule_test") if trial["alertname"] == rule["alert"]]
    fired = [alert["exp_labels"] for trial in tried for alert in trial["exp_alerts"]]
    assert any(alert["severity"] == rule["labels"]["severity"] for alert in fired)
    assert any(alert.get("window") == rule["labels"].get("window") for alert in fired)
    assert any(not trial["exp_alerts"] for trial in tried)


@pytest.mark.parametrize("rule", RECORDS, ids=name)
def test_a_recording_rule_is_named_by_convention_and_tried(rule: dict[str, Any]) -> None:
    level, _, operations = rule["record"].split(":")
    by = re.search(r"sum by \(([^)]*)\)", rule["expr"])
    assert (
        by is not None
        and by[1].split(", ") == ["namespace", *level.split("_")]
        and re.fullmatch(r"ratio_rate\d+[mhd]", operations)
    )
    assert rule["record"] in {trial["expr"] for trial in trials("promql_expr_test")}


def test_a_runbook_belongs_to_an_alert_and_its_queries_to_the_metrics() -> None:
    pages = sorted((ROOT / "docs/runbooks").glob("*.md"))
    kebabs = {re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower() for rule in ALERTS}
    assert {page.stem for page in pages} == kebabs
    for page in pages:
        text = page.read_text()
        for query in re.findall(r"```promql\n(.*?)\n```", text, re.DOTALL):
            assert unknown_names(query) == [], page.name
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
