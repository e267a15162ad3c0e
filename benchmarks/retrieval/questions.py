"""Questions for `benchmarks.retrieval.grounded_answers`: computations, and terms that a collection has or lacks.

Their answers are known without a model. Random choices are seeded. FOLDOC's terms are those that
`benchmarks.retrieval.faithfulness_scoring` did not calibrate with.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from benchmarks.retrieval import faithfulness_scoring
from benchmarks.retrieval.labelled_texts import Entry, foldoc
from serve.retrieval.verify.faithfulness import sentences

CLASSIC_SUM = "What is 40366 / 439?"
CLASSIC_TERM = "What is a Martian Dunetree?"


@dataclass(slots=True, frozen=True)
class Sum:
    """A computation in words, with its exact result."""

    question: str
    value: Fraction


def sums(seed: int, count: int) -> list[Sum]:
    """`count` computations of all kinds in turn, the classic one first. No result is a number of its question."""
    draw = random.Random(seed)
    result = [Sum(CLASSIC_SUM, Fraction(40366, 439))]
    while len(result) <= count:
        kind, wordings = SUMS[len(result) % len(SUMS)]
        numbers, value = kind(draw)
        question = draw.choice(wordings).format(*numbers)
        if str(value) not in re.findall(r"\d+", question):
            result.append(Sum(question, value))
    return result


def _two(
    low: int, high: int, value: Callable[[int, int], Fraction]
) -> Callable[[random.Random], tuple[list[str], Fraction]]:
    def kind(draw: random.Random) -> tuple[list[str], Fraction]:
        a, b = draw.randint(10 * low, 10 * high), draw.randint(low, high)
        return [str(a), str(b)], value(a, b)

    return kind


def _decimals(draw: random.Random) -> tuple[list[str], Fraction]:
    a, b = Fraction(draw.randint(101, 9999), 100), Fraction(draw.randint(11, 999), 10)
    return [f"{float(a):.2f}", f"{float(b):.1f}"], a + b


def _percent(draw: random.Random) -> tuple[list[str], Fraction]:
    share, of = draw.randint(3, 97), draw.randint(110, 9990)
    return [str(share), str(of)], Fraction(share * of, 100)


def _power(draw: random.Random) -> tuple[list[str], Fraction]:
    base, exponent = draw.randint(6, 29), draw.randint(3, 6)
    return [str(base), str(exponent)], Fraction(base**exponent)


def _root(draw: random.Random) -> tuple[list[str], Fraction]:
    root = draw.randint(23, 320)
    return [str(root * root)], Fraction(root)


def _nested(draw: random.Random) -> tuple[list[str], Fraction]:
    a, b, c = draw.randint(100, 999), draw.randint(100, 999), draw.randint(3, 48)
    return [str(a), str(b), str(c)], Fraction((a + b) * c)


def _mean(draw: random.Random) -> tuple[list[str], Fraction]:
    numbers = [draw.randint(10, 900) for _ in range(3)]
    return [str(number) for number in numbers], Fraction(sum(numbers), 3)


def _grouped(draw: random.Random) -> tuple[list[str], Fraction]:
    a, b = draw.randint(100_000, 9_999_999), draw.randint(10_000, 99_999)
    return [f"{a:,}", f"{b:,}"], Fraction(a - b)


#: Numbers with their result, and the question around them.
SUMS = (
    (
        _two(13, 999, Fraction),
        ("What is {} / {}?", "What is {} divided by {}?", "Could you divide {} by {}?", "How much is {} ÷ {}?"),
    ),
    (
        _two(12, 97, lambda a, b: Fraction(a * b)),
        ("What is {} times {}?", "{} x {} = ?", "Multiply {} by {}.", "What do I get when I multiply {} by {}?"),
    ),
    (
        _two(1200, 98000, lambda a, b: Fraction(a + b)),
        ("What is {} plus {}?", "Add {} and {}.", "What's the sum of {} and {}?", "{} + {} is what?"),
    ),
    (_grouped, ("What is {} minus {}?", "Take {1} away from {0}.", "Subtract {1} from {0}.", "How much is {} - {}?")),
    (_percent, ("What is {}% of {}?", "How much is {} percent of {}?", "Please work out {}% of {}.",
        "{} % of {} is how much?")),
    (_power, ("What is {} to the power of {}?", "Compute {}^{}.", "What is {} raised to the power {}?",
        "How much is {} ** {}?")),
    (_root, ("What is the square root of {}?", "Find the square root of {}.", "sqrt({}) = ?",
        "Which number is the square root of {}?")),
    (_nested, ("What is ({} + {}) * {}?", "Evaluate ({} + {}) × {}.", "Can you calculate ({} + {}) times {}?")),
    (_decimals, ("What is {} + {}?", "How much do {} and {} make together?", "What does {} plus {} equal?")),
    (_mean, ("What is the average of {}, {} and {}?", "Give me the mean of {}, {} and {}.", "Average of {}, {}, {}?")),
)  # fmt: skip

#: Questions with numbers but without a computation: the calculator must not answer them.
NO_SUMS = (
    "What happened on 7/14?", "What happened on 3/11 in Japan?", "Who won the final 4-1?",
    "What does the error 404 mean?",
    "What is the difference between HTTP 301 and 302?", "What is on channel 24-7?",
    "Is the 24/7 hotline free of charge?",
    "What was Apollo 11 - 13 about?", "How do I call 555-0199?", "What is the code of 0049-30?",
    "What are sections 4-6 about?",
    "What is in chapters 10 - 12?", "Who lived from 1756-1791?", "What happened between 1914 and 1918?",
    "What is a 2x4?",
    "Does a 1920 x 1080 screen fit?", "How wide is a 4:3 picture?", "What is a 16/9 format?",
    "What is the size 36/32 in jeans?",
    "Which tyres are 205/55 R16?", "What is the 2-3-5 formation?", "Explain the 50/30/20 rule.",
    "What is the 80/20 principle?",
    "What are the odds 5/1?", "What does 20/20 vision mean?", "Is a blood pressure of 135/85 high?",
    "Who was number 10 in 1986?",
    "What is Windows 3.11?", "What changed in version 2.4.1?", "What is Python 3.12 - 3.13?", "What is 10.0.0.1/8?",
    "Which network is 172.16.0.0/12?", "What is RFC 2616?", "What is ISO 3166-1?", "What is 802.11ac?",
    "What is IEEE 754-2008?",
    "Who wrote Fahrenheit 451?", "What is Catch-22?", "What is the plot of 2001?", "What is the Boeing 737-800?",
    "What is an A4 sheet?", "What is the MP3 format?", "What does H2SO4 do?", "What is carbon-14?",
    "What is U-235 used for?",
    "How many is a dozen?", "What year is it in the year 5784?", "What is the 21st amendment?", "Who was Henry 8?",
    "Why is 7 x 8 hard to remember?", "Is 91 a prime number?", "Why does 0.1 + 0.2 not equal 0.3?",
    "Who proved that 1 + 1 = 2?",
    "What is the meaning of 42?", "How many legs do 3 spiders have?", "If I buy 4 pens and lose 1, how many remain?",
    "How many days are in 3 weeks and 2 days?", "What is 12 miles in kilometres?", "What is 30 °C in Fahrenheit?",
    "How much are 250 USD in EUR?", "Convert 5 feet 11 to centimetres.", "What is room 3-14?",
    "Where is gate B 22 - 24?",
    "What is 5G + Wi-Fi 6?", "What is the score 6-4, 6-3?", "What is 1/2 inch pipe?", "What is a 3/4 ton truck?",
)  # fmt: skip


@dataclass(slots=True, frozen=True)
class Term:
    """A question about a term. `definition` is the first sentence of the collection's text about it; empty: none."""

    question: str
    definition: str = ""


@dataclass(slots=True, frozen=True)
class Terms:
    """A collection and the terms to ask about."""

    documents: tuple[dict[str, object], ...]  # in the format of `POST /v1/documents`
    answerable: tuple[Term, ...]
    invented: tuple[Term, ...]  # terms that nobody uses
    left_out: tuple[Term, ...]  # of the same field, in no document
    elsewhere: tuple[Term, ...]  # of other fields

    @property
    def unanswerable(self) -> tuple[Term, ...]:
        """All terms that are not in the collection."""
        return self.invented + self.left_out + self.elsewhere


def terms(folder: Path, seed: int, documents: int, count: int) -> Terms:
    """A part of FOLDOC as collection, `count` terms from it, and at least as many that it lacks.

    Args:
        folder: with the package, see `benchmarks.retrieval.labelled_texts.fetched`.
    """
    calibrated = _calibrated(folder)
    draw = random.Random(seed)
    entries = {entry.term.lower(): entry for entry in foldoc(folder, draw) if entry.term.lower() not in calibrated}
    drawn = draw.sample(sorted(entries.values(), key=lambda entry: entry.term), documents + 4 * count)
    inside, outside = drawn[:documents], drawn[documents:]
    text = "\n".join(entry.passage.lower() for entry in inside)
    clear = [entry for entry in inside if 8 <= len(definition(entry).split()) <= 40]
    absent = [entry for entry in outside if len(entry.term) > 4 and entry.term.lower() not in text]
    return Terms(
        tuple(
            {
                "source": f"foldoc/{entry.term}",
                "title": entry.term,
                "content": entry.passage.partition("\n\n")[2],
                "type": "text/plain",
            }
            for entry in inside
        ),
        tuple(Term(question_about(entry.term, draw), definition(entry)) for entry in clear[:count]),
        invented(draw, count // 2),
        tuple(Term(question_about(entry.term, draw)) for entry in absent[: count // 2]),
        tuple(Term(question) for question in ELSEWHERE),
    )


def _calibrated(folder: Path) -> set[str]:
    """The terms of FOLDOC that `benchmarks.retrieval.faithfulness_scoring` fits and tests with: drawn as `labelled_texts.entries` draws them."""
    draw = random.Random(faithfulness_scoring.SEED)
    drawn = list(foldoc(folder, draw))
    draw.shuffle(drawn)
    return set(list(dict.fromkeys(entry.term.lower() for entry in drawn))[: faithfulness_scoring.SIZES["foldoc"]])


def definition(entry: Entry) -> str:
    """First sentence of an entry without leading parentheses; empty for a cross-reference or a sentence with an address."""
    body = entry.passage.partition("\n\n")[2]
    start, end = next(iter(sentences(body)), (0, 0))
    first = re.sub(r"^(?:<[^>]*>|\([^()]*\)|/[^/]*/|\[[^]]*\]|\d+\.|[\s:])+", "", body[start:end])
    return "" if re.match(r"see\b|.*[<@]", first, re.I) else first


def invented(draw: random.Random, count: int) -> tuple[Term, ...]:
    """Fictional terms, composed of syllables or of unrelated words, the classic one first."""
    terms_by_name = {CLASSIC_TERM: Term(CLASSIC_TERM)}
    while len(terms_by_name) <= count:
        if len(terms_by_name) % 2:
            term = f"{draw.choice(_PLACES)} {draw.choice(_FORE).capitalize()}{draw.choice(_AFT)}"
        else:
            term = "".join(draw.choice(_SYLLABLES) for _ in range(3)).capitalize()
        question = question_about(term, draw)
        terms_by_name[question] = Term(question)
    return tuple(terms_by_name.values())


def question_about(term: str, draw: random.Random) -> str:
    """A full question about a term."""
    forms = ("What is {}?", "What does {} mean?", "Can you explain what {} is?", "What do you know about {}?")
    return draw.choice(forms).format(term)


_PLACES = tuple(
    re.findall(r"\w+", "Martian Saturnian Bavarian Subtidal Alpine Ottoman Cartesian Cretan Plutonian Inverted")
)
_FORE = tuple(re.findall(r"\w+", "dune moss lamp brine tin kettle quill thorn amber fog"))
_AFT = tuple(re.findall(r"\w+", "tree beetle ledger harp orchid valve lens anvil oyster spindle"))
_SYLLABLES = tuple(re.findall(r"\w+", "zor bli mav ket urn plo dri fex gam nol tiv wub sker joth"))
ELSEWHERE = (
    "What is photosynthesis?", "Who wrote Middlemarch?", "What is the capital of Mongolia?",
    "How is sourdough bread made?",
    "What is the offside rule in football?", "Who painted The Night Watch?", "What causes the tides?",
    "What is a sonnet?",
    "How do bees make honey?", "When did the Thirty Years' War end?",
)  # fmt: skip
