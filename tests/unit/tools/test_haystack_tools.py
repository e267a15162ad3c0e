"""Tools that models call: what they answer and how they fail."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from haystack.dataclasses import ChatMessage

from serve.tools.haystack_tools import ToolError, calculator, clock, make_tool, search_documents

NOW = datetime(2026, 11, 25, 3, 40, tzinfo=UTC)


async def call(tool: Any, **given: Any) -> str:
    return await tool.invoke_async(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"expression": "40366 / 439"}, "40366 / 439 ≈ 91.949886104784"),
        ({"expression": "1/0"}, "error: a division by zero has no result"),
        (
            {"expression": "import os"},
            "error: expression: 'import os' does not match '^(?:[-0-9.,+*/%^()! ]|abs|cbrt|factorial|max|mean|min|root|round|sqrt|of)+$'",
        ),
        ({}, "error: 'expression' is a required property"),
        ({"expression": 5}, "error: expression: 5 is not of type 'string'"),
        ({"expression": "1", "x": 1}, "error: Additional properties are not allowed ('x' was unexpected)"),
    ],
)
async def test_the_calculator_answers_or_says_what_is_wrong(given, expected):
    assert await call(calculator(), **given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "Wednesday, November 25, 2026, 3:40:00\u202fAM Coordinated Universal Time"),
        ({"what": "date", "date": "1976-07-04"}, "Sunday, July 4, 1976"),
        ({"what": "days", "until": "25 December 2026"}, "30 days (November 25, 2026 – December 25, 2026)"),
        ({"timezone": "Mars"}, "error: there is no time zone 'Mars'"),
        ({"what": "date", "date": "soon"}, "error: 'soon' is no date; write it like 2026-12-25"),
    ],
)  # fmt: skip
async def test_the_clock_answers_or_says_what_is_wrong(given, expected):
    assert await call(clock(now=lambda: NOW), **given) == expected
    if "what" not in given:
        assert "error: what: 'noon' is not one of" in await call(clock(), what="noon")


async def test_an_agents_computation_uses_the_numbers_of_its_conversation():
    conversation = [ChatMessage.from_user("What is 15% of four hundred thirty-two, divided by 40366?")]
    assert await call(calculator(), expression="0.15*432", conversation=conversation) == "0.15 * 432 = 64.8"
    refused = await call(calculator(), expression="40366/439", conversation=conversation)
    assert refused == "error: 439 is no number of the question or of a result; use only those"


async def test_documents_are_numbered_and_failures_reported():
    async def search(query: str, top_k: int) -> list[dict[str, Any]]:
        if query == "broken":
            raise ToolError("the store does not answer")
        return [{"title": "Guide", "source": "g.md", "content": f"about {query}"}, {"content": "more"}][:top_k]

    tool = search_documents(search)
    assert await call(tool, query="gears") == "[1] Guide — g.md\nabout gears\n\n[2] more"
    assert await call(tool, query="gears", top_k=1) == "[1] Guide — g.md\nabout gears"
    assert await call(tool, query="broken") == "error: the store does not answer"
    assert (await call(tool, query="gears", top_k=99)).startswith("error: top_k: 99 is greater")

    async def nothing(query: str, top_k: int) -> list[dict[str, Any]]:
        return []

    assert await call(search_documents(nothing), query="x") == "nothing was found"


def test_a_tool_can_be_called_without_an_event_loop():
    assert calculator().invoke(expression="6*7") == "6 * 7 = 42"


async def test_a_pattern_is_checked_in_linear_time_whatever_it_is_and_whatever_the_model_gives():
    schema = {
        "type": "object",
        "properties": {"q": {"type": "string", "pattern": "^(a+)+$"}},
        "additionalProperties": False,
    }
    tool = make_tool("echo", "Echoes.", schema, lambda given: given["q"])
    assert await call(tool, q="aaa") == "aaa"
    started = time.process_time()
    expected = await call(tool, q="a" * 100_000 + "!")
    assert time.process_time() - started < 2
    assert expected.startswith("error: q: 'aaaa")
    assert expected.endswith("does not match '^(a+)+$'")


async def test_a_pattern_that_no_linear_engine_can_check_is_left_to_the_service():
    schema = {"type": "object", "properties": {"q": {"type": "string", "pattern": r"^(?!b)(a+)+\1$"}}}
    tool = make_tool("echo", "Echoes.", schema, lambda given: given["q"])
    given = "a" * 100 + "!"
    assert await call(tool, q=given) == given
    assert tool.parameters == schema  # the model sees the pattern all the same
