"""`gearbox calibrate`: fit a collection's threshold of support to questions that its documents answer, over HTTP."""

import csv
import io
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import typer
from rich.console import Console
from rich.progress import track

from serve.cli.client import LOCAL, RETRY_S, RETRY_STATUSES, Key, Url, checked, fail, model_name, platform_client
from serve.retrieval.verify.calibration import (
    FALSE_ABSTENTION,
    MAX_SCORES,
    TooFewQuestions,
    conformal_threshold,
    min_questions,
)

MAX_BYTES = 32 << 20  # of a file with questions
_TOP_K = 20
_T = TypeVar("_T")
_PROMPT = (
    "Write one question, in the language of the text, that the text answers. Write only the question.\n\nText: {text}"
)
_IS_QUESTION = {"regex": r"[^\n?？؟]{8,120}[?？؟]"}  # small models answer otherwise, or do not end


@dataclass(slots=True, frozen=True)
class Question:
    """A question, and the name of a document that answers it; empty: not known."""

    text: str
    source: str = ""


@dataclass(slots=True, frozen=True)
class Measured:
    """Support of a question by the whole collection, and by its other documents; None: not measured."""

    score: float
    found: bool  # the document is among the passages
    without: float | None


def calibrate(
    collection: Annotated[str, typer.Argument(help="Collection to calibrate.")],
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions that its documents answer: JSON lines or CSV with `question` and `source`."),
    ] = None,
    generate: Annotated[
        int, typer.Option(min=0, max=MAX_SCORES, help="Let the model write this many questions from the documents.")
    ] = 0,
    rate: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of answerable questions that may be abstained from.")
    ] = FALSE_ABSTENTION,
    mode: Annotated[str, typer.Option(help="Retrieval pipeline.")] = "hybrid",
    model: Annotated[str, typer.Option(help="Model that writes the questions; default: the platform's.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and change nothing.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Return to the platform's default threshold.")] = False,
    url: Url = LOCAL,
    api_key: Key = "",
) -> None:
    """Fit the support below which a collection counts as having no answer.

    Without questions, shows the threshold. Ctrl-C changes nothing.
    """
    rows = _read(questions) if questions else []
    try:
        with platform_client(url, api_key) as client:
            if reset:
                return _show(_request(client, "DELETE", "/v1/calibration", params={"collection": collection}))
            if not rows and not generate:
                return _show(_request(client, "GET", "/v1/calibration", params={"collection": collection}))
            rows += _generated(client, collection, generate, model) if generate else []
            if len(rows) < min_questions(rate):
                raise fail(f"a rate of {rate:g} needs at least {min_questions(rate)} questions; there are {len(rows)}")
            measured = [_measured(client, collection, row, mode) for row in _tracked(rows, "searching")]
            scores = [one.score for one in measured]
            for line in report(measured, rate):
                typer.echo(line)
            if not dry_run:
                body = {"collection": collection, "scores": scores, "rate": rate}
                _show(_request(client, "POST", "/v1/calibration", json=body))
    except KeyboardInterrupt:
        raise fail("interrupted; nothing was changed", 130) from None


def report(measured: Sequence[Measured], rate: float) -> Iterator[str]:
    """Expected false abstention, leave-one-out, and abstention from questions whose document is left out."""
    scores = [one.score for one in measured]
    sourced = [one for one in measured if one.without is not None]
    if sourced:
        found = sum(one.found for one in sourced)
        yield f"{found} of {len(sourced)} questions find their document among {_TOP_K} passages"
    try:
        below = sum(score < conformal_threshold(scores[:i] + scores[i + 1 :], rate) for i, score in enumerate(scores))
        yield f"false abstention, each question against the threshold of the others: {below} of {len(scores)}"
    except TooFewQuestions:
        yield "too few questions to measure false abstention: one more is needed"
    if sourced:
        threshold = conformal_threshold(scores, rate)
        abstained = sum(one.without is not None and one.without < threshold for one in sourced)
        yield f"abstention with the question's document left out: {abstained} of {len(sourced)}"


def _measured(client: httpx.Client, collection: str, question: Question, mode: str) -> Measured:
    body = {"collection": collection, "query": question.text, "top_k": _TOP_K, "mode": mode, "min_score": 0.0}
    whole = _request(client, "POST", "/v1/search", json=body)
    if not question.source:
        return Measured(whole["support"], False, None)
    others = {"field": "source", "operator": "!=", "value": question.source}
    without = _request(client, "POST", "/v1/search", json={**body, "filters": others})
    found = any(passage["source"] == question.source for passage in whole["data"])
    return Measured(whole["support"], found, without["support"] if without["data"] else None)


def _generated(client: httpx.Client, collection: str, count: int, model: str) -> list[Question]:
    """Questions that the model writes from passages of documents drawn at random."""
    sources = list(_sources(client, collection))
    draw = random.Random(0)
    picked = draw.sample(sources, count) if count <= len(sources) else draw.choices(sources, k=count)
    model = model or model_name(client)
    return [
        Question(text, source)
        for source in _tracked(picked, "writing questions")
        if (text := _question_about(client, collection, source, model, draw))
    ]


def _question_about(client: httpx.Client, collection: str, source: str, model: str, draw: random.Random) -> str:
    """A question about a passage of the document; empty where the model writes none."""
    own = {"field": "source", "operator": "==", "value": source}
    body = {"collection": collection, "query": source, "top_k": _TOP_K, "min_score": 0.0, "filters": own}
    passages = _request(client, "POST", "/v1/search", json=body)["data"]
    if not passages:
        return ""
    text = draw.choice(passages)["content"]
    message = {"role": "user", "content": _PROMPT.format(text=text)}
    body = {
        "model": model, "messages": [message], "max_tokens": 128, "temperature": 0, "retrieval": False,
        "structured_outputs": _IS_QUESTION,
    }  # fmt: skip
    answer = _request(client, "POST", "/v1/chat/completions", json=body)["choices"][0]["message"]["content"] or ""
    return next((line.strip() for line in answer.splitlines() if line.strip()[-1:] in ("?", "？", "؟")), "")


def _sources(client: httpx.Client, collection: str) -> Iterator[str]:
    query = {"collection": collection, "limit": "1000"}
    while True:
        page = _request(client, "GET", "/v1/documents", params=query)
        yield from (document["source"] for document in page["data"])
        if not page["has_more"]:
            return
        query["after"] = page["data"][-1]["source"]


def _read(path: Path) -> list[Question]:
    """The questions of a file. Ends the command if it is not one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise fail(f"{path} is larger than {MAX_BYTES >> 20} MiB", 2)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{path}: {error}", 2) from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [_row(row, path, reader.line_num) for row in reader]
    else:
        rows = [_row(_parsed(line, path, n), path, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(rows) > MAX_SCORES:
        raise fail(f"{path} has {len(rows)} questions; at most {MAX_SCORES} are used", 2)
    return rows


def _parsed(line: str, path: Path, number: int) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise fail(f"{path}:{number}: not JSON: {error}", 2) from error


def _row(row: object, path: Path, number: int) -> Question:
    question, source = (row.get("question"), row.get("source") or "") if isinstance(row, dict) else (None, "")
    if not isinstance(question, str) or not question.strip() or not isinstance(source, str):
        raise fail(f"{path}:{number}: a row has a `question`, and the `source` that answers it where that is known", 2)
    return Question(question.strip(), source)


def _tracked(rows: Sequence[_T], what: str) -> Iterator[_T]:
    yield from track(rows, what, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _request(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Send a request; retried for `RETRY_S` when the platform is busy. Ends the command with its error."""
    until = time.monotonic() + RETRY_S
    while True:
        response = client.request(method, path, **options)
        after = response.headers.get("retry-after", "")
        wait = min(float(after), 30.0) if after.isdecimal() else 1.0
        if response.status_code not in RETRY_STATUSES or time.monotonic() + wait > until:
            return checked(response)
        time.sleep(wait)


def _show(calibration: dict[str, Any]) -> None:
    origin = (
        "the platform's default" if calibration["questions"] is None else f"from {calibration['questions']} questions"
    )
    typer.echo(
        f"collection {calibration['collection']}: threshold {calibration['threshold']:.3f} ({origin}), for a false-abstention "
        f"rate of {calibration['rate']:g}"
    )
