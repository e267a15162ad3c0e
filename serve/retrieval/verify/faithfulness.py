"""Faithfulness scoring: do passages entail an answer's sentences?

A logistic model of a few features: which of the claim's words a sentence of a passage lacks, how much they mean by the embedder, and
whether the sentence is about what was asked. No list of words but the phrases in `phrases.yaml`. The weights and the threshold come
from `python -m benchmarks.retrieval.faithfulness_scoring`, which prints them.
"""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serve.retrieval.verify.phrases import phrases
from serve.retrieval.verify.sentences import MAX_CHARS, is_row, sentences
from serve.retrieval.verify.unknown_words import MAX_QUESTION_CHARS
from serve.retrieval.verify.words import (
    Word,
    WordIndex,
    is_content,
    is_exact,
    most_telling,
    parts,
    stem,
    weight,
    without,
    words,
)

Vectors = np.ndarray[Any, np.dtype[np.float32]]

MIN_ENTAILED = 0.73  # sentences below it are marked as unsupported: the largest F1 on the calibration part

# Bias first, then a weight for each feature, in the order of `Features`.
ENTAILMENT = (-3.733, 4.752, -2.817, -3.224, -2.847, -17.733, -47.682, 0.563)

_MAX_CANDIDATES = 3  # passage sentences that are compared with one answer sentence
_MAX_SENTENCES = 64  # checked sentences of an answer; embedding more would take longer than generating them
_MAX_WORDS = 4  # missing words of a claim, or of the question, whose meaning is measured
_NEARNESS = 0.5  # share of a word's nearness to the passage that counts for it: the passage may say it in other words
_MAX_COMPARED = 32  # words of a claim and its question by which candidates are found
# Longer texts are truncated; in a long claim no single word moves the vector.
_MAX_ANSWER_CHARS = 100_000
_MAX_CLAIM_CHARS = 1_000
_MAX_CLAIM_WORDS = 100  # different ones
_MAX_HEAD_CHARS = 1_000

_CITATION = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")
_NO_ORDINAL = rf"(?!\s+{phrases('ordinal')}(?!\w))"
_MARKER = re.compile(rf"(?:[-*+•#>|]{{1,9}}|\d{{1,9}}(?:\)|\.{_NO_ORDINAL}))\s+", re.I)  # not of "31. Dezember"
_OPENING = re.compile(rf"{phrases('opening')}\s*", re.I)
_NEGATION = re.compile(rf"\b{phrases('negation')}(?!\w)", re.I)
_NO_ANSWER = re.compile(rf"\b{phrases('no_answer')}(?!\w)", re.I)
_FURTHER = re.compile(r"[,;:–—](?:\s+\S+){5}")  # after "I don't know": a clause that may be a claim
# possessive: what one phrase has taken, a rest of the line too, is never tried again as another
_COURTESY = re.compile(rf"(?:{phrases('courtesy')}\W*+)++", re.I)


@dataclass(slots=True, frozen=True)
class CheckedSentence:
    """A sentence of an answer, `answer[start:end]`. The other fields are None when it makes no claim."""

    start: int
    end: int
    score: float | None  # probability that the passages entail it
    supported: bool | None
    passage: int | None  # index of the passage that entails it, or comes nearest


class Passage(NamedTuple):
    """A source: its title and heading, which go with each of its sentences, and its text."""

    head: str
    text: str


class Features(NamedTuple):
    """Whether a sentence of a passage entails a claim, of words that are not the question's."""

    coverage: float  # share of the claim's words that the sentence has, by weight
    exact_unknown: float  # numbers and codes that the passage lacks
    exact_elsewhere: float  # numbers and codes that only other sentences of the passage have
    negated: float  # 1: one of them is negated
    loss: float  # meaning of the claim's word that the sentence lacks and that means most, 0 to 1
    question_loss: float  # likewise, of the question's words that other sentences have
    relevance: float  # cosine similarity of question and claim to the sentence; 0 without a question


async def check_answer(
    answer: str,
    passages: Sequence[Passage],
    embed: Callable[[Sequence[str]], Awaitable[Vectors]],
    *,
    question: str = "",
) -> list[CheckedSentence]:
    """Score each sentence of the answer against the passages.

    Args:
        answer: the generated text; at most `_MAX_SENTENCES` sentences in its first `_MAX_ANSWER_CHARS` characters are checked.
        passages: the sources in the prompt.
        embed: unit vectors of texts, (texts, d); called at most once, with a few texts for each of the answer's sentences.
        question: what the answer repeats of it is no claim, and a sentence about another of its subjects entails nothing.
    """
    spans = sentences(answer[:_MAX_ANSWER_CHARS])
    if len(answer) > _MAX_ANSWER_CHARS:
        spans = spans[:-1]  # the last sentence may be cut off
    spans = spans[:_MAX_SENTENCES]
    evidence = Evidence(passages)
    claims = [Claim(claim_text(answer[start:end]), question, evidence) for start, end in spans]
    checked = [claim for claim in claims if claim.claims_something]
    texts = list(dict.fromkeys(text for claim in checked for text in claim.texts()))
    vectors = dict(zip(texts, await embed(texts), strict=True)) if texts else {}

    found = []
    for (start, end), claim in zip(spans, claims, strict=True):
        if not claim.claims_something:
            found.append(CheckedSentence(start, end, None, None, None))
            continue
        best, passage = 0.0, None
        for j, features in claim.features(vectors):
            score = _logistic(ENTAILMENT, features)
            if passage is None or score > best:
                best, passage = score, evidence.passage[j]
        found.append(CheckedSentence(start, end, best, best >= MIN_ENTAILED, passage))
    return found


def claim_text(sentence: str) -> str:
    """The claim of an answer's sentence: the sentence without citations, list markers and opening phrases."""
    text = _CITATION.sub("", sentence[: 2 * _MAX_CLAIM_CHARS]).strip()
    for pattern in (_MARKER, _OPENING, _OPENING):
        if match := pattern.match(text):
            text = text[match.end() :].lstrip()
    return text


class Evidence:
    """The passages' sentences, indexed by their words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.texts: list[str] = []
        self.passage: list[int] = []  # index of each sentence's passage
        self.negated: list[bool] = []
        self._near: list[tuple[int, ...]] = []
        self._of_passage: list[range] = []  # each passage's sentences
        for number, (_, text) in enumerate(passages):
            text = text[:MAX_CHARS]
            before = len(self.texts)
            self.texts += [text[start:end] for start, end in sentences(text)]
            of_passage = range(before, len(self.texts))
            self.passage += [number] * len(of_passage)
            self._near += _neighbours(self.texts, of_passage)
            self._of_passage.append(of_passage)
        self.negated = [_is_negated(text) for text in self.texts]
        self._words = WordIndex(map(parts, self.texts))
        self.in_rows = {part for text in self.texts if is_row(text) for part in parts(text)}
        self._heads = WordIndex(parts(head[:_MAX_HEAD_CHARS]) for head, _ in passages)

    def candidates(self, claimed: Iterable[str]) -> list[int]:
        """The sentences that share the most of the words `claimed`, rare ones first; earlier sentences among equals."""
        telling = sorted({stem(part): part for part in claimed}.values(), key=weight, reverse=True)[:_MAX_COMPARED]
        shared = dict.fromkeys(range(min(_MAX_CANDIDATES, len(self.texts))), 0.0)
        for part in telling:
            having = self._words.having(part)
            for j in having:
                shared[j] = shared.get(j, 0.0) + math.log(1 + len(self.texts) / len(having))
        return sorted(shared, key=lambda j: (-shared[j], j))[:_MAX_CANDIDATES]

    def knows(self, part: str) -> bool:
        """Whether any passage has the part."""
        return part in self._words or part in self._heads

    def has(self, j: int, part: str) -> bool:
        """Whether sentence `j`, or its passage's head, has the part."""
        return j in self._words.having(part) or self.head_has(j, part)

    def passage_has(self, j: int, part: str) -> bool:
        """Whether the passage of sentence `j` has the part."""
        having = self._words.having(part)
        return self.has(j, part) or any(i in having for i in self._of_passage[self.passage[j]])

    def head_has(self, j: int, part: str) -> bool:
        """Whether the head of sentence `j`'s passage has the part."""
        return self.passage[j] in self._heads.having(part)

    def is_right_before(self, j: int, word: Word, part: str) -> bool:
        """Whether the part of a word is right before sentence `j`, where the subject may be named.

        A sentence with another code of that kind has its own subject.
        """
        if word.is_exact and any(word.is_rival(other) for other in words(self.texts[j][:_MAX_CLAIM_CHARS])):
            return False
        return any(i in self._words.having(part) for i in self._near[j])


class Row:
    """A table's row, of which the cells that a claim is about count: the first one, and those that have one of its values.

    What a cell says of the row's subject, it says under its own column's name. A cell of which every word is asked for tells the row
    apart, like the first. Where no cell has a value of the claim, all count.

    Args:
        row: the sentence.
        values: the claim's words that are not the question's.
        asked: the question's words.
    """

    def __init__(self, row: str, values: Iterable[str], asked: WordIndex) -> None:
        first, *cells = row.split(" | ")
        sought = WordIndex([values])
        counted, has_value = [first], False
        for cell in cells:
            own = parts(_value(cell))
            is_claimed = any(part in sought for part in own)
            has_value = has_value or is_claimed
            if is_claimed or (own and all(part in asked for part in own)):
                counted.append(cell)
        counted = counted if has_value else [first, *cells]
        self.text = " | ".join(counted)
        self.words = parts(self.text)
        self.forms = WordIndex([self.words])
        self.negated = _is_negated(" | ".join(map(_value, counted)))  # "Part No: 4711" is not


def _value(cell: str) -> str:
    """What a cell says, without its column's name."""
    return cell.partition(": ")[2] or cell


def _neighbours(texts: Sequence[str], of_passage: range) -> Iterator[tuple[int, ...]]:
    """Of each sentence of a passage, the one that may name its subject: before a sentence, that one; before a row, its group's title."""
    title: tuple[int, ...] = ()
    for j in of_passage:
        if is_row(texts[j]):
            yield title
        else:
            is_item = _MARKER.match(texts[j]) is not None
            yield title if title == (j - 1,) and not is_item else ()
            title = (j,)


class Claim:
    """A claim of an answer to a question, with the sentences that may entail it.

    Args:
        text: see `claim_text`.
        question: the question, or nothing.
        evidence: what may entail it.
    """

    def __init__(self, text: str, question: str, evidence: Evidence) -> None:
        self.text, self._evidence = text[:_MAX_CLAIM_CHARS], evidence
        self._question = question if len(question) <= MAX_QUESTION_CHARS else ""
        of_claim = list(parts(self.text))[:_MAX_CLAIM_WORDS]
        self.claims_something = bool(of_claim) and _claims_something(self.text)
        if not self.claims_something:
            return
        of_question = parts(question[:MAX_CHARS])
        self._asked = WordIndex([of_question])
        self._exact = {part: word for word in words(self.text) for part in word.parts if is_exact(part)}
        content = [part for part in of_claim if is_content(part)]
        self._new = self._not_asked(content) or self._not_asked(of_claim) or content or of_claim
        self._candidates = evidence.candidates([*of_claim, *of_question])
        rows = (j for j in self._candidates if is_row(evidence.texts[j]))
        self._rows = {j: Row(evidence.texts[j], self._new, self._asked) for j in rows}
        telling = len(self.text) <= MAX_QUESTION_CHARS  # in longer ones no single word moves the vector
        lacking = (word for word in words(self.text) if any(self._lacks(j, word) for j in self._candidates))
        self._lacking = most_telling(lacking, _MAX_WORDS) if telling else []
        distinct = (word for word in words(self._question) if self._tells_apart(word))
        self._distinct = most_telling(distinct, _MAX_WORDS)

    def _not_asked(self, of_parts: Sequence[str]) -> list[str]:
        return [part for part in of_parts if part not in self._asked]

    def _lacks(self, j: int, word: Word) -> bool:
        """Whether a sentence lacks a part of the claim's word, which is not the question's."""
        return any(not self._has(j, part) for part in self._not_asked(word.parts))

    def _tells_apart(self, word: Word) -> bool:
        """Whether the passages have the question's word, but not at every candidate; a number that none has counts, too."""
        known = all(self._evidence.knows(part) or is_exact(part) for part in word.parts)
        return known and any(self._is_elsewhere(j, word) for j in self._candidates)

    def _is_elsewhere(self, j: int, word: Word) -> bool:
        return any(not self._is_near(j, word, part) for part in word.parts)

    def _has(self, j: int, part: str) -> bool:
        """Whether candidate `j`, or its passage's head, has the part; of a row, the cells that the claim is about."""
        if (row := self._rows.get(j)) is None:
            return self._evidence.has(j, part)
        # names of rows may be alike: where a row has the word itself, what is a form of it elsewhere is another name
        found = row.words if part in self._evidence.in_rows else row.forms
        return part in found or self._evidence.head_has(j, part)

    def _is_near(self, j: int, word: Word, part: str) -> bool:
        """Whether the part of a word is in candidate `j` or right before it."""
        return self._has(j, part) or self._evidence.is_right_before(j, word, part)

    def _candidate_is_negated(self, j: int) -> bool:
        """Whether candidate `j` is negated; of a row, whether one of its values is."""
        if (row := self._rows.get(j)) is not None:
            return row.negated
        return self._evidence.negated[j]

    def _text(self, j: int) -> str:
        row = self._rows.get(j)
        return self._evidence.texts[j] if row is None else row.text

    def texts(self) -> list[str]:
        """The texts whose vectors `features` needs."""
        candidates = [self._text(j) for j in self._candidates]
        shortened = [self._whole_without(word) for word in self._lacking]
        shortened += [self._question_without(word) for word in self._distinct]
        return [text for text in (self._whole, self._question, *candidates, *shortened) if text]

    def features(self, vectors: Mapping[str, Vectors]) -> Iterator[tuple[int, Features]]:
        """The candidates, as numbers of the evidence's sentences, with their features. `vectors` are those of `texts`."""
        for j in self._candidates:
            vector, whole = vectors[self._text(j)], vectors[self._whole]
            lost = [
                _loss(whole, vectors.get(self._whole_without(word)), vector)
                for word in self._lacking
                if self._lacks(j, word)
            ]
            question_lost = [
                _loss(vectors[self._question], vectors.get(self._question_without(word)), vector)
                for word in self._distinct
                if self._is_elsewhere(j, word)
            ]
            yield (
                j,
                Features(
                    coverage=self._coverage(j),
                    **self._lacking_exact(j),
                    negated=float(_is_negated(self.text) != self._candidate_is_negated(j)),
                    loss=max(lost, default=0.0),
                    question_loss=max(question_lost, default=0.0),
                    relevance=float(whole @ vector) if self._question else 0.0,
                ),
            )

    def _coverage(self, j: int) -> float:
        known = sum(weight(part) for part in self._new if self._has(j, part))
        return known / sum(map(weight, self._new))

    def _lacking_exact(self, j: int) -> dict[str, float]:
        """The claim's numbers and codes that the sentence lacks; those of the question may be right before it."""
        lacking = [
            part
            for part, word in self._exact.items()
            if not (self._is_near(j, word, part) if part in self._asked else self._has(j, part))
        ]
        unknown = sum(not self._evidence.passage_has(j, part) for part in lacking)
        return {"exact_unknown": float(unknown), "exact_elsewhere": float(len(lacking) - unknown)}

    @property
    def _whole(self) -> str:
        return f"{self._question} {self.text}".strip()

    def _whole_without(self, word: Word) -> str:
        return f"{self._question} {without(self.text, word)}".strip()

    def _question_without(self, word: Word) -> str:
        return without(self._question, word)


def _loss(whole: Vectors, without: Vectors | None, passage: Vectors) -> float:
    """How far a text's vector moves without a word, less what of this movement is away from the passage; 1 if nothing is left."""
    if without is None:
        return 1.0
    return max(0.0, float(1 - whole @ without) - _NEARNESS * max(0.0, float(passage @ (whole - without))))


def _is_negated(text: str) -> bool:
    return bool(_NEGATION.search(text))


def _claims_something(text: str) -> bool:
    """Whether a sentence makes a claim; questions, courtesies, code, announcements and "I don't know" do not."""
    if text.startswith("```") or text.rstrip().endswith(("?", ":")) or _COURTESY.fullmatch(text):
        return False
    if (none := _NO_ANSWER.search(text)) is None:
        return True
    return len(text[: none.start()].split()) > 4 or _FURTHER.search(text, max(none.end() - 1, 0)) is not None


def _logistic(weights: Sequence[float], features: Sequence[float]) -> float:
    z = weights[0] + sum(weight * value for weight, value in zip(weights[1:], features, strict=True))
    return 1 / (1 + math.exp(-max(min(z, 60.0), -60.0)))
