"""Messages of invalid fields name each field once."""

import pytest

from tests.support.answers import error_of
from tests.support.gateway_server import Start


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ({"budget": {"ttft_ms": 0}}, {}, "budget.ttft_ms: Input should be greater than 0"),
        ({"budget": {"ttft_ms": True}}, {}, "budget.ttft_ms: expected a number, got true or false"),
        ({}, {"x-gearbox-min-quality": "2"}, "x-gearbox-min-quality: Input should be less than or equal to 1"),
        ({"retrieval": {"top_k": 0}}, {}, "retrieval.top_k: Input should be greater than or equal to 1"),
        ({"retrieval": {"tools": ["x"]}}, {}, "retrieval.tools.0: Input should be"),
    ],
)
def test_an_invalid_field_is_named_once(start_gateway: Start, body, headers, message):
    error = error_of(start_gateway(retrieval={}).chat(headers=headers, **body), 400)
    assert error["message"].startswith(message)
