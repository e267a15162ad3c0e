"""Faithfulness scoring: do passages entail an answer's sentences?

A logistic model of a few features: cosine similarity of the texts' embeddings, and overlap of their terms. The weights and the
threshold below come from `python -m benchmarks.retrieval.faithfulness_scoring`, which prints them.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np

Vectors = np.ndarray[Any, np.dtype[np.float32]]

MIN_ENTAILED = 0.71  # sentences below it are marked as unsupported: the largest F1 on the calibration half

# Bias first, then a weight for each feature, in the order of `entailment_features`.
ENTAILMENT = (-7.11, 0.225, 5.24, 2.827, -3.295, -1.935, -3.79, -3.893, 2.616)

_MAX_CANDIDATES = 3  # passage sentences whose embeddings are compared with one answer sentence
_MAX_SENTENCES = 64  # checked sentences of an answer; embedding more would take longer than generating them
# Longer texts are truncated: nothing else bounds a question, an answer or a chunk of one long word.
_MAX_ANSWER_CHARS = 100_000
MAX_QUESTION_CHARS = 20_000
MAX_PASSAGE_CHARS = 20_000
_MAX_WORD_CHARS = 64  # significant characters of a word

_WORD = re.compile(r"\w+[+#]*")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"\b[A-Z]\w*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"\d+\.\d+")
_OPENING = re.compile(  # opening phrases of a sentence, which are not part of its claim
    r"^(?:[-*+•#>|]+|\d+[.)])\s+|^(?:(?:according to|based on) (?:the|this|these|your) (?:\w+ ){0,2}\w+"
    r"|in (?:short|summary|other words)|note that|yes|no|sure|answer)(?:[,:]\s*|(?<=that) )",
    re.I,
)
_CITATION = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")
_NEGATION = re.compile(r"\b(?:not|no|never|none|neither|nor|without|cannot|nothing|nobody)\b|n['’]t\b", re.I)

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about according after all also am an and any are as at be because been before being both but by can could
        did do does doing each else ever few for from get give had has have having he her hers him his how i if in into
        is it its itself just let like made make many may me might more most much must my of off on once one only or
        other our out over own please s same shall she should since so some such t than that the their them then there
        these they this those through to too under until up us used using very was we were what when where whether
        which while who whom whose why will with within would you your""",
    )
)
_QUESTION_WORDS = frozenset(  # words of questions that passages need not contain
    re.findall(
        r"\w+",
        """answer called define definition describe description explain explanation find know mean meaning question refer
        say tell term understand word""",
    )
)
#: Demonyms whose stem differs from the country's name: a question may use one and a text the other.
_DEMONYMS: dict[str, str] = dict(
    re.findall(
        r"\b(\w+)/(\w+)",
        """british/kingdom britain/kingdom uk/kingdom french/france dutch/netherlands spanish/spain italian/italy
        polish/poland swedish/sweden norwegian/norway danish/denmark dane/denmark finnish/finland belgian/belgium
        portuguese/portugal greek/greece irish/ireland hungarian/hungary swiss/switzerland austrian/austria
        czech/czechia romanian/romania ukrainian/ukraine russian/russia turkish/turkey scottish/scotland welsh/wales
        english/england american/america usa/america canadian/canada mexican/mexico brazilian/brazil
        argentinian/argentina peruvian/peru chilean/chile australian/australia japanese/japan chinese/china
        indian/india pakistani/pakistan korean/korea israeli/israel egyptian/egypt kenyan/kenya nigerian/nigeria
        african/africa asian/asia european/europe""",
    )
)
_SUFFIXES = re.compile(
    r"(?<=\w{4})(?:ational|i[sz]ations?|ations?|ments?|ness|ingly|edly|ities|ity|[ia]ble|ings?|ions?|[oe]rs?|ie[sd]|ives?"
    r"|ally|ly)$|(?<=\w{3})(?:ies|es|ed|s|e|y)$"
)

# Dots after these never end a sentence; after `_ABBREVIATIONS` they do unless a lower-case letter follows.
_TITLES = re.compile(r"(?:mrs?|ms|dr|prof|st|vs|cf|approx|e\.?g|i\.?e|viz|al)", re.I)
_NUMBERED = re.compile(r"(?:figs?|nos?|vol|pp?|eq|sec|ch|v|ver)", re.I)  # abbreviations only before a number: "No. 5"
_ABBREVIATIONS = re.compile(
    r"(?:etc|inc|ltd|co|corp|jr|sr|[ap]\.m|u\.[sk]|est|dept|jan|feb|mar|apr|aug|sept?|oct|nov|dec)", re.I
)
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’)\]*_`]*+(?=\s)|[。！？]""")
# Before an empty line, a list item, a heading, a quotation, a fence, and a row of a table (`Country: Norway | Full day: 66`)
_LINE = re.compile(r"\n(?=[ \t]*(?:\n|[-*+•|#>]|\d+[.)]\s|```)|[^\n]*\S \| \S)")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_MARKER = re.compile(r"(?:^|\n)[ \t]*\d+\.$")
_WORD_BREAK = re.compile(r"[\s(\[\"'“]")
_NON_SPACE = re.compile(r"\S")

_REFUSAL = re.compile(  # the answer states that it has no answer
    r"\b(?:i|we)(?:['’]m| am| do| can| could)?(?:\s?not|n['’]t|not| unable to| sorry\b| afraid\b)"
    r"(?: know| find| answer| say| tell| have| help| see| provide| determine|[.,]|$)"
    r"|\b(?:not|n['’]t) (?:mention|contain|say|state|specif|provide|give|found|cover)\w* (?:\w+ ){0,3}"
    r"(?:sources?|passages?|documents?|context|texts?|information|answer)\b|\bno (?:information|mention|answer)\b",
    re.I,
)
_PLEASANTRY = re.compile(  # possessive: what one phrase has taken, a rest of the line too, is never tried again as another
    r"(?:(?:hello|hi|hey|sure|certainly|of course|thanks|thank you|sorry|okay|ok|great|there|everyone|you(?:['’]re)? welcome"
    r"|(?:please )?let me know\b.*+|i hope\b.*+|hope (?:this|that) helps|feel free\b.*+)\W*+)++",
    re.I,
)


@dataclass(slots=True, frozen=True)
class CheckedSentence:
    """A sentence of an answer, `answer[start:end]`. The other fields are None when it makes no claim."""

    start: int
    end: int
    score: float | None  # probability that the passages entail it
    supported: bool | None
    passage: int | None  # index of the passage that entails it, or comes nearest


async def check_answer(
    answer: str,
    passages: Sequence[str],
    embed: Callable[[Sequence[str]], Awaitable[Vectors]],
    *,
    question: str = "",
) -> list[CheckedSentence]:
    """Score each sentence of the answer against the passages.

    Args:
        answer: the generated text; at most `_MAX_SENTENCES` sentences in its first `_MAX_ANSWER_CHARS` characters are checked.
        passages: texts of the sources in the prompt.
        embed: unit vectors of texts, (texts, d); called once, with at most a few sentences for each of the answer's.
        question: content that the answer repeats from the question is not a claim of the answer.
    """
    spans = sentences(answer[:_MAX_ANSWER_CHARS])
    if len(answer) > _MAX_ANSWER_CHARS:
        spans = spans[:-1]  # the last sentence may be cut off
    spans = spans[:_MAX_SENTENCES]
    claimed = [claim_text(answer[start:end]) for start, end in spans]
    claims = {i: text for i, text in enumerate(claimed) if _has_claim(text)}
    evidence = Evidence(passages)
    candidates = {i: evidence.candidates(text) for i, text in claims.items()}
    texts = [text.text for text in claims.values()] + [evidence.texts[j] for js in candidates.values() for j in js]
    texts = list(dict.fromkeys(texts))
    vectors = await embed(texts) if texts else np.empty((0, 1), np.float32)
    row = dict(zip(texts, vectors, strict=True))
    question_text = Text(question[:MAX_QUESTION_CHARS])

    checked = []
    for i, (start, end) in enumerate(spans):
        if i not in claims:
            checked.append(CheckedSentence(start, end, None, None, None))
            continue
        best, passage = 0.0, None
        for j in candidates[i]:
            cosine = float(row[claims[i].text] @ row[evidence.texts[j]])
            score = _logistic(ENTAILMENT, entailment_features(claims[i], evidence, j, cosine, question_text))
            if passage is None or score > best:
                best, passage = score, evidence.passage[j]
        checked.append(CheckedSentence(start, end, best, best >= MIN_ENTAILED, passage))
    return checked


def claim_text(sentence: str) -> "Text":
    """The claim of an answer's sentence: the sentence without citations, list markers and opening phrases."""
    return Text(_OPENING.sub("", _OPENING.sub("", _CITATION.sub("", sentence).strip())))


class Text:
    """A sentence with its compared features: stems, numbers, negation."""

    __slots__ = ("content", "negated", "numbers", "terms", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.content = _content(text)
        self.numbers = _numbers(text)
        self.terms = self.content.keys() | self.numbers
        self.negated = bool(_NEGATION.search(text))


class Evidence:
    """The passages' sentences, indexed by stem."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.texts: list[str] = []
        self.terms: list[AbstractSet[str]] = []  # stems and numbers of each sentence
        self.passage: list[int] = []  # index of each sentence's passage
        self.passage_terms: list[AbstractSet[str]] = []  # stems and numbers of each passage
        self._postings: dict[str, list[int]] = {}  # sentences by stem
        for i, passage in enumerate(passages):
            passage = passage[:MAX_PASSAGE_CHARS]
            texts = [passage[start:end] for start, end in sentences(passage)]
            terms = [set(stems(text)) | _numbers(text) for text in texts]
            self.texts += texts
            self.passage += [i] * len(texts)
            self.terms += terms
            self.passage_terms.append(set().union(*terms))
        for j, stems_of in enumerate(self.terms):
            for stem in stems_of:
                self._postings.setdefault(stem, []).append(j)

    def candidates(self, text: Text) -> list[int]:
        """The sentences that share the most words with `text`, earlier sentences first among equals."""
        shared: dict[int, float] = {}
        for stem, weight in text.content.items():
            for j in self._postings.get(stem, ()):
                shared[j] = shared.get(j, 0.0) + weight
        others = (j for j in range(len(self.terms)) if j not in shared)
        return list(islice(chain(sorted(shared, key=lambda j: (-shared[j], j)), others), _MAX_CANDIDATES))


def entailment_features(text: Text, evidence: Evidence, at: int, cosine: float, question: Text) -> tuple[float, ...]:
    """Features for whether sentence `at` of the evidence, with its passage, entails `text`.

    Cosine (reduced for short texts, whose vectors are far from any sentence's), coverage of the text's words in the sentence
    and in the passage, numbers and names that the passage lacks, a negation on one side only, numbers that only other
    sentences of the passage contain, and how short the text is.
    """
    terms, passage_terms = evidence.terms[at], evidence.passage_terms[evidence.passage[at]]
    new = {stem: weight for stem, weight in text.content.items() if stem not in question.content} or text.content
    numbers = text.numbers - question.numbers
    names = {_stem(name.lower()) for name in _names(text.text)} - question.terms
    short = min(1.0, 2 / max(len(text.content), 1))
    return (
        cosine * (1 - short),
        coverage(new, terms),
        coverage(new, passage_terms),
        float(len(numbers - passage_terms)),
        float(len(names - passage_terms)),
        float(text.negated != bool(_NEGATION.search(evidence.texts[at]))),
        float(len((numbers & passage_terms) - terms)),
        short,
    )


def sentences(answer: str) -> list[tuple[int, int]]:
    """Spans of all sentences: ordered, disjoint, trimmed, covering all text but white space.

    Each list item, table row, heading and fenced code block is one sentence.
    """
    cuts = {0, len(answer)}
    fences = [match.span() for match in _FENCE.finditer(answer)]
    for fence in fences:
        cuts.update(fence)
    ends = [match.end() for match in _END.finditer(answer) if _is_sentence_end(answer, match)]
    ends += [match.start() for match in _LINE.finditer(answer)]
    for end in ends:
        before = bisect_left(fences, (end,)) - 1  # the last fence that starts before it
        if before < 0 or fences[before][1] <= end:
            cuts.add(end)
    spans = []
    for start, end in pairwise(sorted(cuts)):
        piece = answer[start:end].rstrip()
        if stripped := piece.lstrip():
            spans.append((start + len(piece) - len(stripped), start + len(piece)))
    return spans


def _is_sentence_end(text: str, match: re.Match[str]) -> bool:
    """Whether a candidate is the end of a sentence."""
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    before = text[max(0, match.start() - 20) : match.start()]
    word = _WORD_BREAK.split(before)[-1]
    next_char = _NON_SPACE.search(text, match.end())
    following = next_char[0] if next_char else ""
    if _TITLES.fullmatch(word) or _MARKER.search(text[max(0, match.start() - 20) : match.start() + 1]):
        return False
    if _NUMBERED.fullmatch(word):
        return not following.isdigit()
    if _ABBREVIATIONS.fullmatch(word):
        return not following.islower()
    return not (len(word) == 1 and word.isalpha() and before[-1:].isupper())


def _has_claim(claimed: Text) -> bool:
    """Whether a sentence makes a claim; questions, greetings, code, announcements and "I don't know" do not."""
    text = claimed.text.strip()
    if text.startswith("```") or text.endswith(("?", ":")) or _PLEASANTRY.fullmatch(text):
        return False
    if _REFUSAL.search(text) and " but " not in text:
        return False
    return bool(claimed.terms)


def stems(text: str) -> list[str]:
    """Stems of the content words, in order."""
    return [stem for stem in map(_stem, _words(text)) if stem]


def _words(text: str) -> list[str]:
    return [word[:_MAX_WORD_CHARS] for word in _WORD.findall(text.lower())]


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """The word without a common suffix; empty for stop words."""
    return "" if word in _STOP_WORDS else _SUFFIXES.sub("", _SUFFIXES.sub("", _DEMONYMS.get(word, word)))


@lru_cache(maxsize=65_536)
def _weight(word: str) -> float:
    """Estimated rarity of a word: longer words are rarer."""
    return 1.0 if any(letter.isdigit() for letter in word) else min(len(word), 10) / 10


def _content(text: str, filler: AbstractSet[str] = frozenset()) -> dict[str, float]:
    """Stems of content words with their weights. Words in `filler` count only if there are no others."""
    words = _words(text)
    weights = {stem: _weight(word) for word in words if word not in filler and (stem := _stem(word))}
    return weights or {stem: _weight(word) for word in words if (stem := _stem(word))}


def question_terms(question: str) -> dict[str, float]:
    """Stems of a question's content words, with their weights."""
    return _content(question[:MAX_QUESTION_CHARS], _QUESTION_WORDS)


def coverage(content: Mapping[str, float], known: AbstractSet[str]) -> float:
    """Share of `content` that is in `known`, by weight, 0 to 1."""
    total = sum(content.values())
    return sum([content[stem] for stem in content if stem in known]) / total if total else 0.0


def _numbers(text: str) -> set[str]:
    """Normalized numbers in `text`: 1,000 is 1000, and 3.50 is 3.5."""
    numbers = set()
    for number in _NUMBER.findall(text):
        plain = _THOUSANDS.sub("", number)
        numbers.add(plain.rstrip("0").rstrip(".") if _DECIMAL.fullmatch(plain) else plain)
    return numbers


def _names(text: str) -> Iterator[str]:
    """Names in `text`: capitalized words; the first word only if it has a second capital."""
    opening = _WORD.search(text)
    for match in _NAME.finditer(text):
        first = opening is not None and match.start() == opening.start()
        name = match[0][:_MAX_WORD_CHARS]
        if _stem(name.lower()) and not (first and name[1:].islower()):
            yield name


def _logistic(weights: Sequence[float], features: Sequence[float]) -> float:
    z = weights[0] + sum(weight * value for weight, value in zip(weights[1:], features, strict=True))
    return 1 / (1 + math.exp(-max(min(z, 60.0), -60.0)))
