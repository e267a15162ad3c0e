"""`gearbox calibrate` against a small HTTP server that searches and stores a threshold like the platform."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app
from serve.cli import calibrate
from serve.cli.calibrate import Measured, report

DEFAULT = {"object": "calibration", "collection": "docs", "threshold": 0.28, "rate": 0.05, "questions": None}


class Platform:
    """Three documents; each question is `SCORE WITHOUT SOURCE`: its support, that without the source, and where it is answered."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: list[httpx.Response] = []  # sent first
        self.calibration: dict[str, Any] = DEFAULT
        self.key: str | None = None
        self.written = "Which document is it?\nIt is one."
        self.interrupt_after: int | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else dict(request.url.params)
        self.requests.append((request.method, request.url.path, body))
        if self.interrupt_after is not None and len(self.requests) > self.interrupt_after:
            raise KeyboardInterrupt
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return self.error(401, "unknown API key")
        if self.answers:
            return self.answers.pop(0)
        if body.get("collection") == "gone":
            return self.error(404, "collection 'gone' does not exist")
        return httpx.Response(
            200, json=getattr(self, request.method.lower() + request.url.path.replace("/", "_"))(body)
        )

    def error(self, status: int, message: str, **headers: str) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": message}}, headers=headers)

    def get_v1_calibration(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.calibration

    def delete_v1_calibration(self, body: dict[str, Any]) -> dict[str, Any]:
        self.calibration = DEFAULT
        return DEFAULT

    def post_v1_calibration(self, body: dict[str, Any]) -> dict[str, Any]:
        self.calibration = {**DEFAULT, "threshold": min(body["scores"]), "questions": len(body["scores"])}
        return self.calibration

    def get_v1_documents(self, body: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in ("a.md", "b.md", "c.md") if name > body.get("after", "")]
        return {"data": [{"source": name} for name in names[:2]], "has_more": len(names) > 2}

    def get_v1_models(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"id": "smollm"}]}

    def post_v1_chat_completions(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["retrieval"] is False and "A text of " in body["messages"][0]["content"]
        return {"choices": [{"message": {"content": self.written}}]}

    def post_v1_search(self, body: dict[str, Any]) -> dict[str, Any]:
        operator = body.get("filters", {}).get("operator")
        source = body["query"].split()[-1] if operator is None else body["filters"]["value"]
        if operator is None:
            support = float(body["query"].split()[0]) if body["query"][0].isdigit() else 0.5
        else:
            support = float(body["query"].split()[1]) if body["query"][0].isdigit() else 0.1
        names = [name for name in ("a.md", "b.md", "c.md") if operator != "!=" or name != source]
        names = [source] if operator == "==" else names
        return {"support": support, "data": [{"source": name, "content": f"A text of {name}"} for name in names]}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Platform:
    stub = Platform()
    client = httpx.Client
    monkeypatch.setattr(
        "serve.cli.client.httpx.Client", lambda **options: client(**options, transport=httpx.MockTransport(stub))
    )
    monkeypatch.setattr("serve.cli.calibrate.time.sleep", lambda _: None)
    return stub


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def questions(tmp_path: Path, count: int = 20, name: str = "questions.jsonl") -> Path:
    rows = [{"question": f"0.{50 + i} 0.{10 + i} a.md", "source": "a.md"} for i in range(count)]
    lines = [json.dumps(row) for row in rows]
    if name.endswith(".csv"):
        lines = ["question,source", *(f'"{row["question"]}",{row["source"]}' for row in rows)]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path / name


@pytest.mark.parametrize("name", ["questions.jsonl", "questions.csv"])
def test_a_file_of_questions_sets_the_threshold_and_says_what_to_expect(platform: Platform, tmp_path: Path, name: str):
    result = run("docs", "--questions", questions(tmp_path, name=name))
    assert result.exit_code == 0, result.output
    (stored,) = [body for method, path, body in platform.requests if (method, path) == ("POST", "/v1/calibration")]
    assert stored == {"collection": "docs", "scores": [round(0.5 + i / 100, 2) for i in range(20)], "rate": 0.05}
    assert "20 of 20 questions find their document" in result.output
    assert "each question against the threshold of the others: 1 of 20" in result.output
    assert "document left out: 20 of 20" in result.output
    assert "threshold 0.500 (from 20 questions)" in result.output


def test_a_dry_run_measures_and_changes_nothing(platform: Platform, tmp_path: Path):
    result = run("docs", "--questions", questions(tmp_path), "--dry-run")
    assert result.exit_code == 0 and "false abstention" in result.output
    assert platform.calibration is DEFAULT


def test_the_model_writes_questions_from_the_documents(platform: Platform):
    result = run("docs", "--generate", 25)
    assert result.exit_code == 0, result.output
    assert platform.calibration["questions"] == 25
    sources = {body["filters"]["value"] for _, _, body in platform.requests if "filters" in body}
    assert sources == {"a.md", "b.md", "c.md"}
    written = [body["structured_outputs"] for _, path, body in platform.requests if path == "/v1/chat/completions"]
    assert all(re.fullmatch(one["regex"], "When was it built?") for one in written)
    assert not any(re.fullmatch(one["regex"], "It was built in 1931.") for one in written)


def test_a_model_that_writes_no_questions_changes_nothing(platform: Platform):
    platform.written = "I cannot do that."
    result = run("docs", "--generate", 25)
    assert result.exit_code == 1 and "there are 0" in result.stderr
    assert platform.calibration is DEFAULT


def test_without_questions_it_shows_the_threshold_and_reset_returns_to_the_default(platform: Platform):
    platform.calibration = {**DEFAULT, "threshold": 0.4, "questions": 30}
    assert "threshold 0.400 (from 30 questions)" in run("docs").output
    assert "threshold 0.280 (the platform's default)" in run("docs", "--reset").output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"question": "a"}\n{"question"', "q.jsonl:2: not JSON"),
        ("q.jsonl", '["a"]', "q.jsonl:1: a row has a `question`"),
        ("q.jsonl", '{"question": " "}', "q.jsonl:1"),
        ("q.jsonl", '{"question": "a", "source": 3}', "q.jsonl:1"),
        ("q.csv", "text,source\na,b\n", "q.csv:2: a row has a `question`"),
    ],
)
def test_a_file_that_is_wrong_is_an_error_by_line(platform: Platform, tmp_path: Path, name, text, message):
    (tmp_path / name).write_text(text)
    result = run("docs", "--questions", tmp_path / name)
    assert result.exit_code == 2 and message in result.stderr
    assert platform.requests == []


def test_a_missing_binary_or_huge_file_is_an_error(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("docs", "--questions", tmp_path / "none.jsonl").exit_code == 2
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    assert run("docs", "--questions", tmp_path / "binary.jsonl").exit_code == 2
    monkeypatch.setattr(calibrate, "MAX_BYTES", 10)
    result = run("docs", "--questions", questions(tmp_path))
    assert result.exit_code == 2 and "larger than" in result.stderr
    monkeypatch.setattr(calibrate, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(calibrate, "MAX_SCORES", 19)
    result = run("docs", "--questions", questions(tmp_path))
    assert result.exit_code == 2 and "at most 19" in result.stderr
    assert platform.requests == []


def test_too_few_questions_are_refused_before_anything_is_searched(platform: Platform, tmp_path: Path):
    result = run("docs", "--questions", questions(tmp_path, 18))
    assert result.exit_code == 1 and "at least 19 questions; there are 18" in result.stderr
    assert platform.requests == []


@pytest.mark.parametrize("arguments", [["gone"], ["gone", "--reset"], ["gone", "--generate", "20"]])
def test_a_collection_that_is_missing_is_one_line(platform: Platform, arguments: list[str]):
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (1, "gearbox: collection 'gone' does not exist\n")


def test_a_key_is_sent_and_a_wrong_one_is_one_line(platform: Platform):
    platform.key = "gbx-1"
    assert run("docs", "--api-key", "gbx-1").exit_code == 0
    assert run("docs").stderr == "gearbox: unknown API key\n"


def test_a_busy_platform_is_asked_again(platform: Platform):
    platform.answers = [platform.error(429, "busy", **{"retry-after": "2"}), platform.error(503, "starting")]
    assert run("docs").exit_code == 0


def test_ctrl_c_changes_nothing(platform: Platform, tmp_path: Path):
    platform.interrupt_after = 7
    result = run("docs", "--questions", questions(tmp_path))
    assert result.exit_code == 130 and "interrupted; nothing was changed" in result.stderr
    assert platform.calibration is DEFAULT


def test_what_was_not_measured_is_not_reported():
    rows = [Measured(0.5 + i / 100, False, None) for i in range(19)]
    assert list(report(rows, 0.05)) == ["too few questions to measure false abstention: one more is needed"]
