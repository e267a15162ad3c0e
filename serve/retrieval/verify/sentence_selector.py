"""Sentence selector: shorten passages to the sentences about the question.

Small models miss the answer in a long passage, and every prompt token costs prefill time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haystack import Document, component

from serve.retrieval.verify.sentences import MAX_CHARS, sentences
from serve.retrieval.verify.words import WordIndex, is_content, parts, stem, weight

_MAX_WORDS = 64  # of the question


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
        weights = question_weights(question, [(_head(document), document.content or "") for document in documents])
        read = [
            select_sentences(weights, document.content or "", _head(document), self.sentences) for document in documents
        ]
        best = max((score for score, _ in read), default=0.0)
        selected, passages = [], []
        for (score, text), document in zip(read, documents, strict=True):
            meta = {**document.meta, "focus": text[: self.max_chars]}
            passages.append(Document(id=document.id, content=document.content, meta=meta, score=document.score))
            if score >= self.within * best:
                selected.append(passages[-1])
        return {"documents": selected, "passages": passages}


def question_weights(question: str, passages: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The question's words that the passages have, with how much they tell of a sentence: longer and rarer words more.

    Args:
        question: the question.
        passages: head and text of each.
    """
    texts = [text[:MAX_CHARS] for _, text in passages]
    split = [text[start:end] for text in texts for start, end in sentences(text)]
    every = WordIndex(map(parts, [*split, *(head for head, _ in passages)]))
    asked = {stem(part): part for part in parts(question[:MAX_CHARS])}  # of a word's forms one
    return {
        part: weight(part) * math.log(1 + every.texts / len(having))
        for part in sorted(asked.values(), key=weight, reverse=True)[:_MAX_WORDS]
        if (having := every.having(part))
    }


def select_sentences(
    weights: Mapping[str, float], passage: str, head: str = "", max_sentences: int = 2
) -> tuple[float, str]:
    """Weight of the question's words that the selected sentences have, and these sentences.

    Args:
        weights: of the question's words, see `question_weights`.
        head: the passage's title and heading, whose words the sentences need not repeat.
        max_sentences: maximum number of selected sentences.
    """
    spans = sentences(passage[:MAX_CHARS])
    if not spans:
        return 0.0, passage
    of_sentences = [parts(passage[start:end]) for start, end in spans]
    known, above = WordIndex(of_sentences), WordIndex([parts(head)])
    asked: list[set[str]] = [set() for _ in spans]  # the question's words that each sentence has
    for part in weights:
        for i in known.having(part):
            asked[i].add(part)
    of_head = {part for part in weights if part in above}
    # words of the head do not distinguish sentences: among equals, the first with new words is likely the definition
    scores = [
        _sum(weights, asked[i] - of_head) if any(part not in above for part in of_sentences[i]) else -1.0
        for i in range(len(spans))
    ]
    best = max(range(len(spans)), key=lambda i: (scores[i], -i))
    chosen = {best}
    missing = {part for part in weights if is_content(part)} - asked[best] - of_head
    if missing or max_sentences > 2:
        needed = [_sum(weights, missing & one) for one in asked]
        # the other sentences: first those with the question's missing words, then the neighbours of the best sentence
        others = sorted(set(range(len(spans))) - chosen, key=lambda i: (-needed[i], abs(i - best), i))
        chosen.update(others[: max_sentences - 1])
    text = " ".join(" ".join(passage[start:end].split()) for start, end in (spans[i] for i in sorted(chosen)))
    return _sum(weights, of_head.union(*(asked[i] for i in chosen))), text


def _sum(weights: Mapping[str, float], of_parts: set[str]) -> float:
    return math.fsum(weights[part] for part in of_parts)


def _head(document: Document) -> str:
    return f"{document.meta.get('title', '')}\n{document.meta.get('heading', '')}"
