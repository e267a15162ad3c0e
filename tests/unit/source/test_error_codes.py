"""Error codes: every error has one, and docs/reference/errors.md explains each of them and no others."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import orjson
import pytest

from serve.errors import ErrorCode, RequestError

ROOT = Path(__file__).parents[3]
CODES = set(get_args(ErrorCode))
SOURCES = [path for folder in ("serve", "deployments") for path in sorted((ROOT / folder).rglob("*.py"))]
ERRORS, FAILURES = ((ROOT / "docs" / page).read_text() for page in ("reference/errors.md", "operations/failures.md"))
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!r]*/*.md"), ROOT / "docs/reference/api.md"]
STATUS_AND_CODE = re.compile(r"\b[45]\d\d `([a-z0-9_]+)`(?:(?: or |, )`([a-z0-9_]+)`)?")


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call in the sources that make errors, with the name of what is called."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                yield path, node, function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def haproxy_errors() -> dict[str, dict[str, object]]:
    """HAProxy's errors as JSON, by code: its arguments `status type code message`, and whole bodies."""
    script = (ROOT / "deployments/haproxy").read_text()
    bodies = [orjson.loads(body) for body in re.findall(r"='(\{\"error\".*\})'$", script, re.MULTILINE)]
    for kind, code, message in re.findall(r'^    error \d{3} (\w+) (\w+) "(.*?)"', script, re.MULTILINE):
        bodies.append({"error": {"message": message, "type": kind, "param": None, "code": code}})
    assert len(bodies) == 8
    return {body["error"]["code"]: body["error"] for body in bodies}


def table_codes() -> set[str]:
    """The codes in the table of error codes."""
    cells = [row.split(" | ")[1] for row in ERRORS.splitlines() if re.match(r"\| [45]\d\d", row)]
    return {code for cell in cells for code in re.findall(r"`([a-z0-9_]+)`", cell)}


def test_every_error_states_its_code() -> None:
    """`mypy` checks the codes themselves in `serve/`; a code left out is a `TypeError` only when the error occurs."""
    made = [(path, call) for path, call, name in calls() if name == "RequestError"]
    assert len(made) > 80
    assert [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in made
        if "code" not in {keyword.arg for keyword in call.keywords} or len(call.args) != 2
    ] == []


def test_errors_are_written_as_json_in_one_place() -> None:
    """A dict with a message and a code that is no `RequestError` may lack a field."""
    literals = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Dict)
        and {"message", "code"} <= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    ]
    assert [place.partition(":")[0] for place in literals] == ["serve/errors.py"], literals


def test_codes_outside_the_checked_package_are_known() -> None:
    """mypy checks the codes in `serve/` alone."""
    named = {
        keyword.value.value
        for path, call, _ in calls()
        if path.is_relative_to(ROOT / "deployments")
        for keyword in call.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    assert named and named <= CODES


def test_every_known_code_is_used() -> None:
    text = "".join(path.read_text() for path in SOURCES if path.name != "errors.py")
    text += (ROOT / "serve/errors.py").read_text().partition("class RequestError")[2]
    assert [code for code in sorted(CODES) if f'"{code}"' not in text] == []


@pytest.mark.parametrize("code", sorted(haproxy_errors()))
def test_haproxys_errors_have_the_shape_and_types_of_the_gateways(code: str) -> None:
    error = haproxy_errors()[code]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in {RequestError(status, "why", code="invalid_value").kind for status in range(400, 508)}


def test_every_code_is_in_the_table_of_error_codes() -> None:
    assert sorted((CODES | haproxy_errors().keys()) - table_codes()) == []


def test_every_row_of_the_tables_has_all_its_cells() -> None:
    """Of rows that follow each other, each has as many cells as the first."""
    rows = [re.sub(r"`[^`]*`", "", line) for line in (ERRORS + FAILURES).splitlines()]
    wrong = [
        row
        for before, row in itertools.pairwise(rows)
        if before.startswith("|") and row.startswith("|") and before.count("|") != row.count("|")
    ]
    assert wrong == []


def test_every_code_that_a_page_names_exists() -> None:
    named = {code for page in PAGES for match in STATUS_AND_CODE.findall(page.read_text()) for code in match if code}
    named |= set(re.findall(r"(?:code|event,) `([a-z0-9_]+)`", FAILURES))
    assert {"store_read_only", "gateway_unavailable", "stream_interrupted", "gateway_stopped"} <= named
    assert sorted((named | table_codes()) - CODES - haproxy_errors().keys()) == []
