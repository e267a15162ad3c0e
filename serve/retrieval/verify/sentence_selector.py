"""Sentence selector: shorten passages to the sentences about the question.

Small models miss the answer in a long passage, and every prompt token costs prefill time.
"""

import math
from collections.abc import Sequence
from typing import Any

from haystack import Document, component

from serve.retrieval.verify import faithfulness as scoring


@component
class SentenceSelector:
    """Shorten each passage for the prompt to its sentences about the question, in `meta["focus"]`; the content stays whole.

    Args:
        sentences: maximum sentences per passage: the best, and sentences that give its context.
        within: passages whose best sentence scores below this share of the best score are omitted.
        max_chars: maximum characters of one passage's sentences.
    """

    def __init__(self, sentences: int = 2, within: float = 0.7, max_chars: int = 600) -> None:
        self.sentences = sentences
        self.within = within
        self.max_chars = max_chars

    @component.output_types(documents=list[Document], passages=list[Document])
    def run(self, question: str, documents: list[Document]) -> dict[str, Any]:
        """`documents`: passages relevant to the question, in input order; `passages`: all, each with its sentences selected."""
        read = [
            select_sentences(question, document.content or "", _head(document), self.sentences)
            for document in documents
        ]
        best = max((score for score, _ in read), default=0.0)
        selected, passages = [], []
        for (score, text), document in zip(read, documents, strict=True):
            meta = {**document.meta, "focus": text[: self.max_chars]}
            passages.append(Document(id=document.id, content=document.content, meta=meta, score=document.score))
            if score >= self.within * best:
                selected.append(passages[-1])
        return {"documents": selected, "passages": passages}


def select_sentences(question: str, passage: str, head: str = "", max_sentences: int = 2) -> tuple[float, str]:
    """Share of the question that the selected sentences cover, 0 to 1, and these sentences.

    Args:
        head: the passage's title and heading, whose terms the sentences need not repeat.
        max_sentences: maximum number of selected sentences.
    """
    spans = scoring.sentences(passage[: scoring.MAX_PASSAGE_CHARS])
    if not spans:
        return 0.0, passage
    question_weights = scoring.question_terms(question)
    sentence_terms = [set(scoring.stems(passage[start:end])) for start, end in spans]
    above = set(scoring.stems(head))
    # terms of the head do not distinguish sentences: among equals, the first with new terms is likely the definition
    fresh = [words - above for words in sentence_terms]
    scores = [math.fsum(question_weights.get(word, 0.0) for word in words) if words else -1.0 for words in fresh]
    best = max(range(len(spans)), key=lambda i: (scores[i], -i))
    chosen = {best}
    missing = question_weights.keys() - sentence_terms[best] - above
    if missing or max_sentences > 2:
        chosen.update(_by_need(sentence_terms, best, missing)[: max_sentences - 1])
    text = " ".join(" ".join(passage[start:end].split()) for start, end in (spans[i] for i in sorted(chosen)))
    return scoring.coverage(
        question_weights, sentence_terms[best] | above | set().union(*(sentence_terms[i] for i in chosen))
    ), text


def _by_need(sentence_terms: Sequence[set[str]], best: int, missing: set[str]) -> list[int]:
    """The other sentences: first those with the question's missing terms, then the neighbours of the best sentence."""
    others = [i for i in range(len(sentence_terms)) if i != best]
    return sorted(others, key=lambda i: (-len(missing & sentence_terms[i]), abs(i - best), i))


def _head(document: Document) -> str:
    return f"{document.meta.get('title', '')}\n{document.meta.get('heading', '')}"
