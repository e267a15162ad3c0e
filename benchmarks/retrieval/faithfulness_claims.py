"""Labelled sentences of answers with the passages that they are checked against, from texts, tables and FAQs.

Texts are split in halves; tables and FAQs by their source, like `faq_corpus`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.retrieval import faq_corpus, table_corpus
from benchmarks.retrieval.labelled_texts import PASSAGE_CHARS, Claim, Entry, claims, fact_claims
from benchmarks.retrieval.table_corpus import RowQuestion, Table
from serve.retrieval.verify.faithfulness import Passage

TOP_K = 4  # passages that a sentence is compared with
SENTENCES, FAQ_SENTENCES = 600, 60  # source sentences of the claims; of a language and part
LANGUAGES = ("en", "de", "fr", "es")
_ROWS = 6  # of a passage of a table
_FAQ_ANSWERS = 80  # of a source

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Embed = Callable[[Sequence[str]], Vectors]
Draw = random.Random


@dataclass(slots=True, frozen=True)
class Labelled:
    """A sentence of an answer, and whether `passages` support it."""

    source: str  # "texts", "tables", "FAQs"
    kind: str
    text: str
    supported: bool
    passages: Sequence[Passage]
    question: str
    calibration: bool


def of_texts(entries: Sequence[Entry], embed: Embed, draw: Draw) -> Iterator[Labelled]:
    """Sentences made from dictionary entries, documentation and invented facts, with the passages nearest to theirs."""
    documents = [entry for entry in entries if entry.subset != "facts"][:700]
    facts = [entry for entry in entries if entry.subset == "facts"]
    passages = [entry.passage for entry in [*documents, *facts]]
    near = _nearest(embed(passages), TOP_K + 1)
    made = claims(passages[: len(documents)], draw, SENTENCES)
    drawn = [made[i] for i in sorted(draw.sample(range(len(made)), len(made) // 5))]
    # true sentences, compared with the documents nearest to theirs
    made += [Claim("another document", one.text, False, one.passage) for one in drawn if one.supported]
    made += fact_claims([(len(documents) + i, entry) for i, entry in enumerate(facts)], draw)
    side = [draw.random() < 0.5 for _ in passages]
    for one in made:
        found = near[one.passage][1:] if one.kind == "another document" else near[one.passage][:TOP_K]
        shown = [_passage(passages[i]) for i in found]
        yield Labelled("texts", one.kind, one.text, one.supported, shown, one.question, not side[one.passage])


def of_faqs(part: str, embed: Embed) -> Iterator[Labelled]:
    """Sentences made from answers of FAQs in each language."""
    for language in LANGUAGES:
        answers = [
            item.answer[:PASSAGE_CHARS]
            for source in faq_corpus.sources(part)
            if source.language == language
            for item in faq_corpus.items(source)[:_FAQ_ANSWERS]
        ]
        if len(answers) < TOP_K:
            continue
        near = _nearest(embed(answers), TOP_K)
        for one in claims(answers, random.Random(f"{faq_corpus.SEED} {language} {part}"), FAQ_SENTENCES):
            if one.kind == "negation" and language != "en":  # negated as in English
                continue
            kind = f"FAQ, {language}: {'told differently' if one.supported else 'changed'}"
            shown = [Passage("", answers[i]) for i in near[one.passage]]
            yield Labelled("FAQs", kind, one.text, one.supported, shown, "", part == "calibration")


def of_tables(part: str) -> Iterator[Labelled]:
    """Answers to questions about rows of tables: the right value, another row's, another column's, and one for an entity without a row."""
    for table in table_corpus.tables(part):
        draw = random.Random(f"{faq_corpus.SEED} {table.name} answers")
        for question in table_corpus.row_questions(table):
            yield from _answers(table, question, part == "calibration", draw)


def _answers(table: Table, question: RowQuestion, calibration: bool, draw: Draw) -> Iterator[Labelled]:
    pieces = [table.rows[at : at + _ROWS] for at in range(0, len(table.rows), _ROWS)]
    own = [piece for piece in pieces if any(row[0] == question.entity for row in piece)]
    others = [piece for piece in pieces if piece not in own]
    shown = (own + draw.sample(others, min(TOP_K, len(others))))[:TOP_K]
    draw.shuffle(shown)
    column = max(
        (i for i, name in enumerate(table.columns) if i and name in question.text), key=lambda i: len(table.columns[i])
    )
    values = [
        row[column] for piece in shown for row in piece if row[0] != question.entity and question.value not in row
    ]
    passages = [Passage(table.title, "\n".join(_line(table, row) for row in piece)) for piece in shown]

    def labelled(kind: str, value: str, supported: bool) -> Labelled:
        forms = [value, f"{question.entity}: {value}."]
        if table.language == "en":
            forms.append(f"The {table.columns[column]} of {question.entity} is {value}.")
        text = draw.choice(forms)
        return Labelled("tables", kind, text, supported, passages, question.text, calibration)

    if own:
        yield labelled("row", question.value, True)
        (row,) = (row for row in own[0] if row[0] == question.entity)
        if beside := [
            cell for i, cell in enumerate(row) if i not in (0, column) and cell not in (question.value, row[0])
        ]:
            yield labelled("row, another column's value", draw.choice(beside), False)
    if values:
        yield labelled("row, another's value" if own else "row that is not there", draw.choice(values), False)


def _line(table: Table, row: Sequence[str]) -> str:
    """A row as the platform indexes it."""
    return " | ".join(f"{name}: {cell}" for name, cell in zip(table.columns, row, strict=True))


def _passage(text: str) -> Passage:
    first, _, rest = text.partition("\n\n")
    return Passage(first, rest) if rest and not first.endswith((".", ":")) else Passage("", text)


def _nearest(vectors: Vectors, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :count]
