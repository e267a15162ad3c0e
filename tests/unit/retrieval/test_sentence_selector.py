"""Sentence selector: the sentences of a passage that are about the question."""

import pytest
from haystack import Document

from serve.retrieval.verify.sentence_selector import SentenceSelector, question_weights, select_sentences

TOWN = (
    "Larkhaven is a harbour town of 12,000 people. Since January 2026 Tomas Brandt has been its mayor. "
    "The council meets on Tuesdays in the old customs house."
)


def selected(question: str, passage: str, head: str = "") -> str:
    return select_sentences(question_weights(question, [(head, passage)]), passage, head)[1]


def document(content: str, title: str = "", source: str = "a.md") -> Document:
    return Document(id=source, content=content, meta={"source": source, "title": title, "heading": "", "meta": {}})


def test_the_sentence_that_answers_is_selected_with_the_one_that_names_its_subject():
    assert (
        selected("Who is the mayor of Larkhaven?", TOWN)
        == "Larkhaven is a harbour town of 12,000 people. Since January 2026 Tomas Brandt has been its mayor."
    )


def test_what_the_title_names_needs_no_sentence():
    assert (
        selected("Who is the mayor of Larkhaven?", TOWN, head="Larkhaven council")
        == "Since January 2026 Tomas Brandt has been its mayor."
    )


@pytest.mark.parametrize("passage", ["", "   ", "One sentence only"])
def test_a_passage_without_sentences_to_choose_from_stays(passage):
    assert selected("Who?", passage).strip() == passage.strip()


def test_passages_that_say_less_about_the_question_are_left_out_and_contents_stay_whole():
    documents = [document(TOWN), document("Dunmore is the largest town; its mayor is Ilse Park.", source="b.md")]
    selected = SentenceSelector().run("Who is the mayor of Larkhaven?", documents)["documents"]
    assert [one.id for one in selected] == ["a.md"]
    assert selected[0].content == TOWN
    assert "Tomas Brandt" in selected[0].meta["focus"]


def test_a_rare_word_tells_more_than_a_common_one():
    passage = "The harbour is old. The harbour is deep. Ferries leave daily."
    weights = question_weights("harbour ferries", [("", passage)])
    assert select_sentences(weights, passage, max_sentences=1)[1] == "Ferries leave daily."


def test_what_only_a_title_names_tells_passages_apart():
    documents = [
        document("Its mayor is Tomas Brandt.", "Larkhaven"),
        document("Its mayor is Ilse Park.", "Dunmore", "b.md"),
    ]
    selected = SentenceSelector().run("Who is the mayor of Larkhaven?", documents)["documents"]
    assert [one.id for one in selected] == ["a.md"]


def test_the_order_stays_and_nothing_is_too_long():
    documents = [document(f"The mayor of Larkhaven {'really ' * 200}is Tomas.", source=name) for name in "cab"]
    selected = SentenceSelector(max_chars=50).run("Who is the mayor of Larkhaven?", documents)["documents"]
    assert [one.id for one in selected] == ["c", "a", "b"]
    assert all(len(one.meta["focus"]) == 50 for one in selected)


def test_no_documents_no_focus():
    assert SentenceSelector().run("Who?", [])["documents"] == []
