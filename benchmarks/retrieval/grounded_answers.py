"""Measure the correctness of grounded answers by variant, compared with the bare model: `python -m benchmarks.retrieval.grounded_answers`.

Changing facts, computations, questions that the collection cannot answer, and prompt injections in documents.
Rates with 95% intervals go to `results/grounded.json`, every answer to `results/grounded-answers.jsonl`.
Takes a quarter of an hour on two cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.lib.platform_session import NoPlatform, cards, headers, platform
from benchmarks.lib.processes import NotStarted, command
from benchmarks.reporting import grounding_plots
from benchmarks.reporting.results import RESULTS, save
from benchmarks.retrieval.answer_grading import computes, declines, defines, names, share
from benchmarks.retrieval.facts import Fact, facts, real_facts
from benchmarks.retrieval.injections import Injected, injected, obeys
from benchmarks.retrieval.labelled_texts import fetched
from benchmarks.retrieval.packages import NoPackage
from benchmarks.retrieval.questions import NO_SUMS, Sum, Term, Terms, sums, terms

SEED = 0
MADE_UP, SUMS, DOCUMENTS, TERMS = 36, 60, 400, 50  # facts beside the real ones, computations, documents, terms
MAX_TOKENS = 60
AT_ONCE = 6  # requests
VARIANTS = ("full", "int8", "distilled")
PIPELINES = Path(__file__).parent / "pipelines"
COLLECTION = "benchmark-grounded"
_WAITS_S = (1, 2, 4, 8, 15)  # waits before retries after 429 or 503
PARTS = ("facts", "arithmetic", "unanswerable", "injection")


class Refused(Exception):
    """The platform rejected a request; the message quotes its error."""


@dataclass(slots=True, frozen=True)
class Answer:
    """The answer to one question, and the platform's metadata about it."""

    text: str
    outcome: str = "off"
    sentences: tuple[bool, ...] = ()  # of the sentences with a claim: whether each is supported
    quoted: int | None = None  # source that the platform quoted after the variant's text

    @property
    def own(self) -> str:
        """The variant's text, without the platform's quotation."""
        return self.text if self.quoted is None else self.text.rpartition(f"\n\nSource {self.quoted} says: ")[0]

    @property
    def marked(self) -> bool:
        """Whether a sentence was marked as unsupported."""
        return not all(self.sentences)

    @property
    def abstained(self) -> bool:
        """Whether the platform said that it does not know."""
        return self.outcome == "abstained"


@dataclass(slots=True)
class Bench:
    """The platform under measurement, and all its answers."""

    client: httpx.AsyncClient
    model: str
    variants: Sequence[str]
    bar: Progress
    rows: list[dict[str, object]] = field(default_factory=list)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def ask(
        self, part: str, variant: str, questions: Sequence[str], retrieval: Mapping[str, object] | None,
        max_tokens: int = MAX_TOKENS,
    ) -> list[Answer]:  # fmt: skip
        """Send every question to one variant, some at a time. `part` labels the progress and the answers. Raises `Refused`."""

        async def one(question: str) -> Answer:
            async with self.turns:
                answer = await self._ask(variant, question, retrieval, max_tokens)
            self.bar.advance(0)
            return answer

        self._step(f"{part}, {variant}")
        answers = list(await asyncio.gather(*map(one, questions)))
        self.rows += [
            {
                "part": part, "variant": variant, "question": question, "answer": answer.text,
                "outcome": answer.outcome, "supported": answer.sentences, "quoted": answer.quoted,
            }
            for question, answer in zip(questions, answers, strict=True)
        ]  # fmt: skip
        return answers

    async def _ask(
        self, variant: str, question: str, retrieval: Mapping[str, object] | None, max_tokens: int
    ) -> Answer:
        completion = await self._post("/v1/chat/completions", {
            "model": f"{self.model}:{variant}", "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": max_tokens, "retrieval": retrieval or False, "budget": {"min_quality": 0},
        })  # fmt: skip
        grounding = completion["gearbox"]
        return Answer(
            completion["choices"][0]["message"]["content"] or "",
            (grounding.get("retrieval") or {"outcome": "off"})["outcome"],
            tuple(one["supported"] for one in grounding.get("sentences") or () if one["supported"] is not None),
            grounding.get("quoted"),
        )

    async def index(self, collection: str, documents: Sequence[Mapping[str, object]]) -> None:
        """Add documents to a collection."""

        async def one(document: Mapping[str, object]) -> None:
            async with self.turns:
                await self._post("/v1/documents", {"collection": collection, **document})
            self.bar.advance(0)

        self._step(f"indexing {collection}")
        await asyncio.gather(*map(one, documents))

    @contextlib.asynccontextmanager
    async def collection(self, name: str) -> AsyncIterator[str]:
        """Create a separate collection, empty at the start and deleted at the end."""
        full = f"{COLLECTION}-{name}"
        await self.client.delete("/v1/documents", params={"collection": full})  # left by an interrupted run
        try:
            yield full
        finally:
            await self.client.delete("/v1/documents", params={"collection": full})

    def _step(self, what: str) -> None:
        self.bar.update(0, description=what)
        if not self.bar.console.is_terminal:  # where no bar is drawn
            task = self.bar.tasks[0]
            left = "" if task.time_remaining is None else f", about {task.time_remaining / 60:.0f} minutes left"
            print(f"[{task.completed:.0f}/{task.total:.0f}]{left}: {what}", flush=True)

    async def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        for wait_s in _WAITS_S:
            answer = await self.client.post(path, json=body)
            if answer.status_code not in (429, 503):
                break
            await asyncio.sleep(wait_s)
        if answer.status_code != 200:
            raise Refused(f"{path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()


async def changing_facts(bench: Bench, every: Sequence[Fact]) -> dict[str, Any]:
    """Ask without a document, with one, and with a newer one in its place or beside it."""
    questions = [fact.question for fact in every]
    answers_by_variant: dict[str, dict[str, list[Answer]]] = {variant: {} for variant in bench.variants}
    async with bench.collection("facts") as name:
        for stage in ("bare", "older", "newer"):
            if stage != "bare":
                await bench.index(name, [fact.document(fact.old if stage == "older" else fact.new) for fact in every])
            retrieval = None if stage == "bare" else {"collection": name, "tools": []}
            for variant in bench.variants:
                answers_by_variant[variant][stage] = await bench.ask(f"facts, {stage}", variant, questions, retrieval)
    return {variant: _facts(every, answers) for variant, answers in answers_by_variant.items()}


def _facts(every: Sequence[Fact], answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Rates: an answer is right if it agrees with the newest document so far, stale if only with the older one."""
    bare, older, newer = (list(zip(every, answers[stage], strict=True)) for stage in ("bare", "older", "newer"))
    replaced = [pair for pair in newer if pair[0].replaced]
    beside = [pair for pair in newer if not pair[0].replaced]
    by_own = [(names(one.own, fact.old.values), one) for fact, one in older]
    by_own += [(names(one.own, fact.new.values), one) for fact, one in newer]
    checked = [(right, one) for right, one in by_own if one.sentences]
    return {
        "bare": share(names(one.text, fact.new.values) for fact, one in bare),
        "bare_older": share(names(one.text, fact.old.values) for fact, one in bare),
        "older": share(names(one.text, fact.old.values) for fact, one in older),
        "newer": share(names(one.text, fact.new.values) for fact, one in newer),
        "newer_replaced": share(names(one.text, fact.new.values) for fact, one in replaced),
        "newer_beside": share(names(one.text, fact.new.values) for fact, one in beside),
        "stale": share(_stale(fact, one) for fact, one in newer),
        "stale_replaced": share(_stale(fact, one) for fact, one in replaced),
        "stale_beside": share(_stale(fact, one) for fact, one in beside),
        "abstained": share(one.abstained for _, one in older + newer),
        "in_own_words": share(right for right, _ in by_own),
        "quoted": share(one.quoted is not None for _, one in by_own),
        "marked_of_right": share(one.marked for right, one in checked if right),
        "marked_of_wrong": share(one.marked for right, one in checked if not right),
    }


def _stale(fact: Fact, answer: Answer) -> bool:
    return names(answer.text, fact.old.values) and not names(answer.text, fact.new.values)


async def arithmetic(bench: Bench, every: Sequence[Sum], others: Sequence[str]) -> dict[str, Any]:
    """Ask computations, bare and with the calculator; and questions without a computation, where the calculator must not answer."""
    questions = [one.question for one in every]
    tools = {"collection": None, "tools": ["calculator"]}
    rows: dict[str, Any] = {}
    for variant in bench.variants:
        bare = await bench.ask("arithmetic, bare", variant, questions, None)
        computed = await bench.ask("arithmetic, calculator", variant, questions, tools)
        rows[variant] = {
            "bare": _computed(every, bare),
            "platform": _computed(every, computed),
            "detected": share(answer.outcome == "computed" for answer in computed),
        }
    silent = await bench.ask("no arithmetic, calculator", bench.variants[0], others, tools, max_tokens=1)
    return {"variants": rows, "fired_falsely": share(answer.outcome == "computed" for answer in silent)}


def _computed(every: Sequence[Sum], answers: Sequence[Answer]) -> dict[str, object]:
    pairs = zip(every, answers, strict=True)
    return share(computes(answer.text, one.value, one.question) for one, answer in pairs)


async def unanswerable(bench: Bench, terms: Terms) -> dict[str, Any]:
    """Ask about terms that the collection lacks, and terms that it has."""
    lacking: dict[str, Sequence[Term]] = {
        "invented": terms.invented, "left_out": terms.left_out, "elsewhere": terms.elsewhere,
    }  # fmt: skip
    lacks, has = [[one.question for one in group] for group in (terms.unanswerable, terms.answerable)]
    rows: dict[str, Any] = {}
    async with bench.collection("terms") as name:
        await bench.index(name, terms.documents)
        grounded = {"collection": name, "tools": []}
        for variant in bench.variants:
            bare = await bench.ask("unanswerable, bare", variant, lacks, None)
            answers = await bench.ask("unanswerable", variant, lacks, grounded)
            by_question = dict(zip(lacks, answers, strict=True))
            known_bare = await bench.ask("answerable, bare", variant, has, None)
            known = await bench.ask("answerable", variant, has, grounded)
            answered = [
                (one, answer) for one, answer in zip(terms.answerable, known, strict=True) if not answer.abstained
            ]
            rows[variant] = {
                "bare_declined": share(declines(answer.text) for answer in bare),
                "abstained": share(answer.abstained for answer in answers),
                **{
                    f"abstained_{group}": share(by_question[one.question].abstained for one in terms_of)
                    for group, terms_of in lacking.items()
                },
                "falsely_abstained": share(answer.abstained for answer in known),
                "bare_tells": share(
                    defines(answer.text, one.definition, one.question)
                    for one, answer in zip(terms.answerable, known_bare, strict=True)
                ),
                "tells": share(defines(answer.text, one.definition, one.question) for one, answer in answered),
                "tells_in_own_words": share(
                    defines(answer.own, one.definition, one.question) for one, answer in answered
                ),
                "unsupported_sentences": _unsupported(known),
                "unsupported_in_wrong_answers": _unsupported([answer for answer in answers if not answer.abstained]),
            }
    return rows


async def injection(bench: Bench, every: Sequence[Injected], naive: bool) -> dict[str, Any]:
    """Ask with prompt injections in documents: indexed by the platform, by a naive pipeline, and without injections."""
    questions = [one.fact.question for one in every]
    canaries = {one.canary for one in every}
    arms: dict[str, tuple[list[dict[str, object]], dict[str, object]]] = {
        "clean": ([_note(one, one.clean, "text/markdown") for one in every], {}),
        "defended": ([_note(one, one.content, one.kind) for one in every], {}),
    }
    if naive:
        arms["naive"] = (
            [_note(one, one.naive, "text/plain") for one in every],
            {"mode": "naive", "unverified": "mark"},
        )
    rows: dict[str, Any] = {variant: {} for variant in bench.variants}
    for arm, (documents, how) in arms.items():
        async with bench.collection(f"notes-{arm}") as name:
            await bench.index(name, documents)
            for variant in bench.variants:
                retrieval = {"collection": name, "tools": [], **how}
                answers = await bench.ask(f"injection, {arm}", variant, questions, retrieval)
                rows[variant][arm] = _injection(every, answers, canaries)
    return rows


def _injection(every: Sequence[Injected], answers: Sequence[Answer], canaries: set[str]) -> dict[str, Any]:
    """Rates: obeyed counts the variant's own text; quotations by the platform are counted separately."""
    obeyed = [obeys(answer.own, canaries) for answer in answers]
    right = [names(answer.text, one.fact.old.values) for one, answer in zip(every, answers, strict=True)]
    styles = dict.fromkeys(one.style for one in every)
    return {
        "obeyed": share(obeyed),
        "replaced": share(bad and not good for bad, good in zip(obeyed, right, strict=True)),
        "quoted_order": share(obeys(one.text, canaries) and not bad for bad, one in zip(obeyed, answers, strict=True)),
        "right": share(right),
        "right_in_own_words": share(names(one.own, of.fact.old.values) for of, one in zip(every, answers, strict=True)),
        "abstained": share(answer.abstained for answer in answers),
        "obeyed_by_style": {
            style: share(bad for bad, one in zip(obeyed, every, strict=True) if one.style == style) for style in styles
        },
    }


def _note(one: Injected, content: str, kind: str) -> dict[str, object]:
    return {"source": one.source, "content": content, "type": kind}


def _unsupported(answers: Sequence[Answer]) -> dict[str, object]:
    return share(not supported for answer in answers for supported in answer.sentences)


@dataclass(slots=True, frozen=True)
class Sets:
    """All questions and documents."""

    facts: Sequence[Fact]
    sums: Sequence[Sum]
    no_sums: Sequence[str]
    terms: Terms
    injected: Sequence[Injected]

    def requests(self, parts: Sequence[str], variants: int, arms: int) -> int:
        """Number of requests, indexing included."""
        count = len(self.terms.unanswerable) + len(self.terms.answerable)
        each = {
            "facts": (2 + 3 * variants) * len(self.facts),
            "arithmetic": 2 * variants * len(self.sums) + len(self.no_sums),
            "unanswerable": len(self.terms.documents) + 2 * variants * count,
            "injection": arms * (1 + variants) * len(self.injected),
        }
        return sum(each[part] for part in parts)


def sets(limit: int | None) -> Sets:
    """The questions and documents; no more than `limit` of each. Raises `NoPackage`."""
    all_facts = [*real_facts(), *facts(SEED, MADE_UP)]
    all_terms = terms(fetched(), SEED, DOCUMENTS if limit is None else 20 * limit, min(TERMS, limit or TERMS))
    if limit:  # some of each kind
        return Sets(
            all_facts[:: max(1, len(all_facts) // limit)][:limit], sums(SEED, SUMS)[:limit], NO_SUMS[:limit], all_terms,
            injected(SEED + 1)[:: max(1, 44 // limit)][:limit],
        )  # fmt: skip
    return Sets(all_facts, sums(SEED, SUMS), NO_SUMS, all_terms, injected(SEED + 1))


async def measure(url: str, sets: Sets, parts: Sequence[str], variants: Sequence[str]) -> tuple[dict[str, Any], list]:
    """The result document without the machine, and every answer. Raises `NoPlatform`, `Refused`, httpx's errors."""
    model, by_name, _ = cards(url)
    names_ = [name for name in variants if name in by_name]
    if not names_:
        raise NoPlatform(f"none of {', '.join(variants)} answers at {url}")
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with httpx.AsyncClient(base_url=url, headers=headers(), timeout=300) as client:
        naive = await _has_naive(client)
        if not naive and "injection" in parts:
            print(f"the platform has no mode 'naive': start it with retrieval.pipelines: {PIPELINES}", file=sys.stderr)
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as bar:
            bar.add_task("", total=sets.requests(parts, len(names_), 2 + naive))
            bench = Bench(client, model, names_, bar)
            result: dict[str, Any] = {"model": model, "seed": SEED, "max_tokens": MAX_TOKENS}
            if "facts" in parts:
                result["facts"] = await changing_facts(bench, sets.facts)
            if "arithmetic" in parts:
                result["arithmetic"] = await arithmetic(bench, sets.sums, sets.no_sums)
            if "unanswerable" in parts:
                result["collection"] = {"from": "FOLDOC", "documents": len(sets.terms.documents)}
                result["unanswerable"] = await unanswerable(bench, sets.terms)
            if "injection" in parts:
                result["injection"] = await injection(bench, sets.injected, naive)
    return result, bench.rows


async def _has_naive(client: httpx.AsyncClient) -> bool:
    answer = await client.post("/v1/search", json={"collection": COLLECTION, "query": "?", "mode": "naive"})
    return answer.status_code in (200, 404)  # 400: unknown mode; 404: the collection, which does not exist yet


def summary(result: Mapping[str, Any]) -> str:
    """All rates, one per line."""
    lines = []

    def walk(at: str, node: object) -> None:
        if isinstance(node, dict) and "hits" in node:
            rate = (
                "none"
                if node["share"] is None
                else f"{node['share']:.0%} [{node['ci95'][0]:.0%}, {node['ci95'][1]:.0%}]"
            )
            lines.append(f"{at:60} {node['hits']:4} of {node['items']:4}  {rate}")
        elif isinstance(node, dict):
            for key, value in node.items():
                walk(f"{at} {key}".strip(), value)

    walk("", result)
    return "\n".join(lines)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a platform that runs; else the one of 'gearbox up', else one is started")
    parser.add_argument("--config", type=Path, help="what to start, if nothing runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these; the result is not saved")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="only these; the result is not saved")
    parser.add_argument("--limit", type=int, help="questions of each kind; the result is not saved")
    parser.add_argument("--answers", type=Path, help="file for every answer, where the result is not saved")
    args = parser.parse_args()
    os.environ.setdefault("GEARBOX_RETRIEVAL__PIPELINES", str(PIPELINES))  # of a platform that is started here
    known = (NoPlatform, NotStarted, NoPackage, Refused, httpx.HTTPError)
    with command(known, "what was started for it is stopped"):
        questions = sets(args.limit)
        with platform(args.url, args.config) as url:
            result, rows = asyncio.run(measure(url, questions, args.parts, args.variants))
    print(summary(result))
    complete = not args.limit and tuple(args.parts) == PARTS and tuple(result["facts"]) == VARIANTS
    complete = complete and "naive" in result["injection"]["full"]
    answers = args.answers or (RESULTS / "grounded-answers.jsonl" if complete else None)
    if answers:
        answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if complete:
        save("grounded", result)
        grounding_plots.grounded(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
