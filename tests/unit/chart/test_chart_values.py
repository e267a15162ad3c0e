"""values.yaml, its schema and its table: each value is documented, and unknown values are rejected."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft7Validator

from helm.chart_readme import README
from helm.chart_readme import rendered as readme
from helm.chart_render import EXAMPLES, OPEN, example, merged, refusal
from helm.chart_values import Place, at, defaults, documented, sections
from helm.values_schema import CHANGED_VALUES, RENAMES, SCHEMA, renames
from helm.values_schema import rendered as schema
from serve.config.platform import PlatformConfig


@functools.cache
def validator() -> Draft7Validator:
    return Draft7Validator(json.loads(SCHEMA.read_text()))


def places(values: Any, at: Place = ()) -> Iterator[Place]:
    """The places of all mappings in values, lists included by their index."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    if isinstance(values, dict):
        yield at
    for key, value in items:
        yield from places(value, (*at, key))


def test_the_schema_and_the_table_are_made_of_what_is_there() -> None:
    assert SCHEMA.read_text() == schema(), "python -m helm.values_schema writes it"
    assert RENAMES.read_text() == renames(), "python -m helm.values_schema writes it"
    assert README.read_text() == readme(), "python -m helm.chart_readme writes it"


def test_every_value_is_explained() -> None:
    explained = {value.place for value in documented()}
    values = defaults()
    for place in places(values):
        for key, value in at(values, place).items():
            here = (*place, key)
            covered = any(here[: len(known)] == known for known in explained if known != ("platform",))
            assert covered or (isinstance(value, dict) and value), ".".join(map(str, here))
    for value in documented():
        assert value.text[0].isupper() or value.text.startswith(("`", "vLLM")), value.place
        assert value.text.endswith((".", "`", "…", "}")), value.place
    assert sections().keys() <= defaults().keys()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_schema_takes_the_examples(file: Any) -> None:
    values = merged(defaults(), example(file.stem.removesuffix("-values")))
    assert [error.message for error in validator().iter_errors(values)] == []


# Where anything may be, because it is Kubernetes', vLLM's or the user's to name.
FREE = (
    "affinity", "alertLabels", "allow", "annotations", "dns", "engine", "env", "frontend", "kubernetesApi", "labels",
    "limits", "matchLabels", "monitoringFrom", "namespaceSelector", "nodeSelector", "operatorFrom",
    "parentRefs", "podSecurityContext", "podSelector", "profiles", "requests", "securityContext", "tolerations",
    "topologySpread",
)  # fmt: skip


def test_a_typo_is_refused_at_every_level() -> None:
    whole = merged(defaults(), example("high-availability"), {"ingress": {"tls": [{"secretName": "a"}]}})
    whole["gateway"]["image"] = {"tag": "a"}
    whole["platform"]["retrieval"]["http_tools"] = [{"name": "a", "openapi_spec": "b", "hosts": ["c.example"]}]
    whole["platform"]["access"]["keys"] = [{"sha256": "0" * 64, "tenant": "a"}]
    assert [error.message for error in validator().iter_errors(whole)] == []
    tried = [place for place in places(whole) if not any(part in FREE for part in place)]
    assert len(tried) > 60
    for place in tried:
        inside = at(whole, place)
        inside["tpyo"] = 1
        errors = list(validator().iter_errors(whole))
        del inside["tpyo"]
        assert any("tpyo" in str(error) for error in errors), ".".join(map(str, place))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"platfrom": {}}, "'platfrom'"),
        ({"platform": {"server": {"gateway_replica": 2}}}, "'/platform/server'"),
        (
            {"platform": {"variants": [{"name": "a", "recipe": "b", "replicas": {"minimum": 1}}]}},
            "'/platform/variants/0/replicas'",
        ),
        ({"platform": {"variants": []}}, "'/platform/variants'"),
        ({"platform": {"variants": [{"recipe": "full"}]}}, "'name'"),
        ({"platform": {"retrieval": {"on_budget": "best"}}}, "'/platform/retrieval/on_budget'"),
        ({"platform": {"access": {"keys": [{"sha256": "abc", "tenant": "a"}]}}}, "'/platform/access/keys/0/sha256'"),
        ({"platform": {"model": {"name": "Bad Name"}}}, "'/platform/model/name'"),
        ({"pools": [{"name": "a"}]}, "'/pools/0'"),
        (
            {
                "pools": [
                    {
                        "name": "With_Underscore",
                        "pods": {"min": 1, "max": 1},
                        "resources": {"requests": {}, "limits": {}},
                    }
                ]
            },
            "'/pools/0/name'",
        ),
        ({"gateway": {"pods": {"min": 0}}}, "'/gateway/pods/min'"),
        ({"head": {"resources": {"limits": {"cpu": "lots"}}}}, "'/head/resources/limits/cpu'"),
        ({"weights": {"mode": "node"}}, "'/weights/mode'"),
        ({"image": {"digest": "sha256:short"}}, "'/image/digest'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "'/image/pullPolicy'"),
        ({"redis": {"auth": {"password": "with space"}}}, "'/redis/auth/password'"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "'/monitoring/podMonitor/interval'"),
        ({"networkPolicy": {"from": [{"podSelectors": {}}]}}, "'/networkPolicy/from/0'"),
        ({"ray": {"upgradeStrategy": "Recreate"}}, "'/ray/upgradeStrategy'"),
    ],
)
def test_helm_says_where_a_value_is_wrong(values: dict[str, Any], where: str) -> None:
    text = refusal(merged(OPEN, values))
    assert "specifications of the schema" in text and where in text


def test_the_platform_of_the_defaults_is_one() -> None:
    assert PlatformConfig(**merged(defaults()["platform"], OPEN["platform"])).model.name == "smollm2-135m"


def test_the_chart_may_be_part_of_another_one() -> None:
    assert refusal(merged(OPEN, {"global": {"anything": 1}})) == ""


def test_the_readme_shows_every_example() -> None:
    text = README.read_text()
    assert all(f"(ci/{file.name})" in text for file in EXAMPLES)
    for file in EXAMPLES:
        assert file.read_text().startswith("# ")


def set_at(place: str) -> Any:
    """Values with the one at `place`; `[]` is an entry of a list."""
    values: Any = "anything"
    for name in reversed(place.split(".")):
        values = {name.removesuffix("[]"): [_TOOL | values] if name.endswith("[]") else values}
    return values


_TOOL = {"name": "a", "openapi_spec": "b", "hosts": ["c.example"]}


def test_renamed_and_removed_values_name_their_replacements() -> None:
    lines = refusal(merged(OPEN, *map(set_at, CHANGED_VALUES))).splitlines()
    expected = {f"  - {old} was {change}" for old, change in CHANGED_VALUES.items()}
    assert {line for line in lines if line.startswith("  - ")} == expected
