"""Budget sources, their precedence, and what is rejected."""

import json

import pytest

from serve.budget import DEFAULT_PROFILES, HEADERS, Budget, remaining, resolve_budget
from serve.errors import RequestError

GEARBOX_HEADERS = {name: field for name, field in HEADERS.items() if name.startswith("x-gearbox-")}
VALID = {
    "ttft_ms": (250.0, "250"),
    "tpot_ms": (40.0, "40"),
    "e2e_ms": (2000.0, "2e3"),
    "max_cost": (0.001, "0.001"),
    "min_quality": (0.9, "0.9"),
    "objective": ("cost", "cost"),
    "on_no_candidate": ("reject", "reject"),
}


def refused(body: object = None, headers: dict[str, str] | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        resolve_budget(Budget(), body, headers or {})
    assert caught.value.status == 400
    assert caught.value.code == "invalid_budget"
    return caught.value


def test_without_body_and_headers_the_profile_is_the_budget():
    profile = DEFAULT_PROFILES["balanced"]
    assert resolve_budget(profile, None, {"user-agent": "curl"}) is profile


def test_header_wins_over_body_and_profile():
    base = Budget(ttft_ms=100, tpot_ms=100, e2e_ms=100)
    body = {"ttft_ms": 200, "tpot_ms": 200}
    budget = resolve_budget(base, body, {"x-gearbox-slo-ttft-ms": "300"})
    assert (budget.ttft_ms, budget.tpot_ms, budget.e2e_ms) == (300, 200, 100)


def test_every_documented_header_and_body_field_is_understood():
    assert set(GEARBOX_HEADERS.values()) == set(VALID) == set(Budget.model_fields)
    by_body = resolve_budget(Budget(), {name: value for name, (value, _) in VALID.items()}, {})
    by_header = resolve_budget(Budget(), None, {header: VALID[name][1] for header, name in GEARBOX_HEADERS.items()})
    assert by_body == by_header == Budget(**{name: value for name, (value, _) in VALID.items()})


@pytest.mark.parametrize(("header", "field"), [(h, f) for h, f in HEADERS.items() if h.startswith("x-llm-d-")])
def test_llm_d_headers_mean_the_same(header, field):
    assert getattr(resolve_budget(Budget(), {field: 1}, {header: "75"}), field) == 75
    both = {header: "75", f"x-gearbox-slo-{field.replace('_', '-')}": "50"}
    assert getattr(resolve_budget(Budget(), None, both), field) == 50
    assert getattr(resolve_budget(Budget(), None, dict(reversed(both.items()))), field) == 50


def test_a_body_field_of_null_lifts_the_profiles_limit():
    assert resolve_budget(Budget(ttft_ms=100, max_cost=1), {"ttft_ms": None}, {}) == Budget(max_cost=1)


BAD_NUMBERS = {
    "ttft_ms": ["nan", "inf", "-inf", "-1", "0", "soon", "", "1e400", "86400001", "0x10"],
    "max_cost": ["nan", "inf", "-0.1", "free", ""],
    "min_quality": ["nan", "inf", "-0.1", "1.01", "high", ""],
}
BAD_NUMBERS |= {"tpot_ms": BAD_NUMBERS["ttft_ms"], "e2e_ms": BAD_NUMBERS["ttft_ms"]}
BAD = BAD_NUMBERS | {"objective": ["Quality", "speed", ""], "on_no_candidate": ["fail", ""]}


@pytest.mark.parametrize(("header", "text"), [(h, text) for h, field in HEADERS.items() for text in BAD[field]])
def test_a_bad_header_is_refused_by_its_name(header, text):
    error = refused(headers={header: text})
    assert error.param == header
    assert error.message.startswith(f"{header}: ")
    assert "\n" not in error.message


BAD_JSON = ["NaN", "Infinity", "-Infinity", "-1", '"much"', "[]", "{}", '"nan"', "[1]"]


@pytest.mark.parametrize(("field", "text"), [(field, text) for field in VALID for text in BAD_JSON])
def test_a_bad_body_field_is_refused_by_its_name(field, text):
    error = refused(body={field: json.loads(text)})
    assert error.param == f"budget.{field}"
    assert error.message.startswith(f"budget.{field}: ")


@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number_of_milliseconds(value):
    assert refused(body={"ttft_ms": value}).param == "budget.ttft_ms"


def test_an_unknown_field_is_refused_by_its_name():
    assert refused(body={"ttft": 100}).param == "budget.ttft"


@pytest.mark.parametrize("body", ["fast", 5, ["ttft_ms"], True, 0, "", []])
def test_a_budget_that_is_no_object_is_refused(body):
    assert refused(body=body).param == "budget"


def test_the_bad_source_is_named_when_another_is_good():
    error = refused(body={"ttft_ms": 100, "tpot_ms": 10}, headers={"x-gearbox-slo-ttft-ms": "no"})
    assert error.param == "x-gearbox-slo-ttft-ms"


def test_what_a_client_sent_is_not_repeated_in_the_message():
    assert "sk-secret" not in refused(headers={"x-gearbox-max-cost": "sk-secret"}).message


def test_the_built_in_profiles_say_what_their_names_say():
    assert set(DEFAULT_PROFILES) == {"best", "balanced", "fast", "cheap"}
    assert DEFAULT_PROFILES["best"].objective == "quality"
    assert DEFAULT_PROFILES["fast"].objective == "latency"
    assert DEFAULT_PROFILES["cheap"].objective == "cost"
    assert DEFAULT_PROFILES["balanced"].min_quality
    assert all(profile.on_no_candidate == "degrade" for profile in DEFAULT_PROFILES.values())


@pytest.mark.parametrize(
    ("field", "text"), [("ttft_ms", "500"), ("max_cost", "0.5"), ("min_quality", "0.9"), ("e2e_ms", "")]
)
def test_a_text_is_no_number_in_a_body(field, text):
    assert refused(body={field: text}).param == f"budget.{field}"
    header = next(header for header, name in HEADERS.items() if name == field)
    assert refused(body={field: text}, headers={header: "1"}).param == f"budget.{field}", "though the header counts"


def test_the_spelling_that_does_not_count_must_be_right_too():
    headers = {"x-gearbox-slo-ttft-ms": "50", "x-llm-d-slo-ttft-ms": "soon"}
    assert refused(headers=headers).param == "x-llm-d-slo-ttft-ms"


def test_a_number_in_a_header_has_no_underscores():
    with pytest.raises(RequestError) as caught:
        resolve_budget(Budget(), None, {"x-gearbox-slo-ttft-ms": "1_000"})
    assert (caught.value.param, caught.value.code) == ("x-gearbox-slo-ttft-ms", "invalid_budget")


@pytest.mark.parametrize(
    ("limits", "by_ms"),
    [
        ({}, 60_000),
        ({"tpot_ms": 50, "max_cost": 1}, 60_000),
        ({"ttft_ms": 800}, 800),
        ({"e2e_ms": 2000}, 1500),
        ({"ttft_ms": 800, "e2e_ms": 2000}, 800),
        ({"ttft_ms": 800, "e2e_ms": 1200}, 700),
        ({"ttft_ms": 90_000}, 90_000),
        ({"e2e_ms": 1}, 0),
    ],
)
def test_the_first_token_is_due_when_the_rest_still_fits(limits, by_ms):
    assert Budget(**limits).first_token_by_ms(decode_ms=500) == by_ms


def test_a_limit_that_has_passed_is_not_weighed_any_more():
    budget = Budget(ttft_ms=1000, e2e_ms=5000, min_quality=0.9)
    assert remaining(budget, 0.5) == budget.model_copy(update={"ttft_ms": 500, "e2e_ms": 4500})
    assert remaining(budget, 2.0) == budget.model_copy(update={"ttft_ms": None, "e2e_ms": 3000})
    assert remaining(budget, 9.0) == budget.model_copy(update={"ttft_ms": None, "e2e_ms": None})
    rejects = budget.model_copy(update={"on_no_candidate": "reject"})
    assert remaining(rejects, 2.0).ttft_ms == 1.0
