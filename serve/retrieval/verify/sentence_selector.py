"""Sentence selector: shorten passages to the sentences about the question.

Small models miss the answer in a long passage, and every prompt token costs prefill time.
"""

import math
from collections.abc import Sequence
from typing import Any

from haystack import Document, component

from serve.retrieval.verify import support as scoring


@component
class SentenceSelector:
    """Shorten each passage for the prompt to its sentences about the question, in `meta["focus"]`; the content stays whole.

    Args:
        sentences: of a passage that are kept, the best and those before them that name what they speak of.
        within: passages whose best sentence says less than this share of what the best of all says are left out.
        max_chars: of one passage's sentences.
    """

    def __init__(self, sentences: int = 2, within: float = 0.7, max_chars: int = 600) -> None:
        self.sentences = sentences
        self.within = within
        self.max_chars = max_chars

    @component.output_types(documents=list[Document], passages=list[Document])
    def run(self, question: str, documents: list[Document]) -> dict[str, Any]:
        """`documents`: those that say something about the question, in the order they came; `passages`: all, as short."""
        read = [
            select_sentences(question, document.content or "", _head(document), self.sentences)
            for document in documents
        ]
        best = max((score for score, _ in read), default=0.0)
        kept, passages = [], []
        for (score, text), document in zip(read, documents, strict=True):
            meta = {**document.meta, "focus": text[: self.max_chars]}
            passages.append(Document(id=document.id, content=document.content, meta=meta, score=document.score))
            if score >= self.within * best:
                kept.append(passages[-1])
        return {"documents": kept, "passages": passages}


def select_sentences(question: str, passage: str, head: str = "", max_sentences: int = 2) -> tuple[float, str]:
    """How much of the question the passage's best sentence speaks of, 0 to 1, and that sentence with what it needs.

    Args:
        head: the passage's title and heading: what they name, its sentences need not.
        max_sentences: selected, at most.
    """
    spans = scoring.sentences(passage[: scoring.MAX_PASSAGE_CHARS])
    if not spans:
        return 0.0, passage
    asked = scoring.question_terms(question)
    said = [set(scoring.stems(passage[start:end])) for start, end in spans]
    above = set(scoring.stems(head))
    # what the head names anyway tells sentences apart no more: then the first that says something new defines it
    fresh = [words - above for words in said]
    told = [math.fsum(asked.get(word, 0.0) for word in words) if words else -1.0 for words in fresh]
    best = max(range(len(spans)), key=lambda i: (told[i], -i))
    chosen = {best}
    missing = asked.keys() - said[best] - above
    if missing or max_sentences > 2:
        chosen.update(_by_need(said, best, missing)[: max_sentences - 1])
    text = " ".join(" ".join(passage[start:end].split()) for start, end in (spans[i] for i in sorted(chosen)))
    return scoring.coverage(asked, said[best] | above | set().union(*(said[i] for i in chosen))), text


def _by_need(said: Sequence[set[str]], best: int, missing: set[str]) -> list[int]:
    """Other sentences, first those that say what the best one leaves out; else the one before, then the one after."""
    others = [i for i in range(len(said)) if i != best]
    return sorted(others, key=lambda i: (-len(missing & said[i]), abs(i - best), i))


def _head(document: Document) -> str:
    return f"{document.meta.get('title', '')}\n{document.meta.get('heading', '')}"
