"""Questions about rows of tables: near misses name entities that the document lacks."""

from collections.abc import Iterator

import pytest

from benchmarks.retrieval import faq_corpus, table_corpus
from benchmarks.retrieval.table_corpus import Table, row_questions, tables


@pytest.fixture(params=[False, True], ids=["table", "sheets"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Table:
    def rows(language: str) -> Iterator[tuple[str, ...]]:
        yield from ((f"P-{i}", f"{i} W", f"<{i}>") for i in range(200))

    spec = ("parts", "en", "Parts", ("part", "power", "mark"), rows, request.param)
    monkeypatch.setattr(table_corpus, "_SPECS", [spec])
    (found,) = [one for part in faq_corpus.PARTS for one in tables(part)]
    return found


def test_near_misses_are_of_the_same_table_and_not_in_the_document(table: Table) -> None:
    questions = row_questions(table)
    assert sum(question.answerable for question in questions) == table_corpus.PER_TABLE == len(questions) / 2
    for question in questions:
        assert (f">{question.entity}<" in table.document) == question.answerable
        assert question.entity in question.text and question.value not in question.text


def test_cells_cannot_be_markup(table: Table) -> None:
    assert "&lt;" in table.document and "<1" not in table.document
