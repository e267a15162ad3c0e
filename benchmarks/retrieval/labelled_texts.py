"""Labelled texts for faithfulness scoring: passages, and answer sentences labelled as supported or not.

The texts are FOLDOC's, Python's and PostgreSQL's own, fetched as Debian packages into the cache when they are needed and
never stored in the repository; dated facts are fictional. Random choices are seeded.
"""

import gzip
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.retrieval.packages import unpacked
from serve.retrieval.ingest.convert import ConversionError, convert
from serve.retrieval.verify.sentences import sentences

PACKAGES = ("dict-foldoc", "python3.11-doc", "postgresql-doc-15")
TELLING = (
    "{person} is the {role} of {country}.", "The {role} of {country} is {person}.", "It is {person}.", "{person}",
    "{person} took office on {date}.", "It was {person}, on {date}.", "The {role} has been {person} since {date}.",
)  # fmt: skip
SHORT = 0.25  # share of the sentences that are shortened to a few words
NUMBER = re.compile(r"(?<![\w.])\d{1,9}(?!\w)")
PASSAGE_CHARS = 700  # about 150 tokens: less than a chunk, so that the embedding covers all of it

Draw = random.Random


@dataclass(slots=True, frozen=True)
class Entry:
    """Text about one term in a collection, and the question that it answers."""

    subset: str
    term: str
    question: str
    passage: str
    page: str  # all entries of a page are in the collection, or none


@dataclass(slots=True, frozen=True)
class Claim:
    """A possible sentence of an answer, made from a sentence of a passage."""

    kind: str  # how it was made
    text: str
    supported: bool
    passage: int  # index of the passage it was made from
    question: str = ""  # the question that it answers


def fetched() -> Path:
    """The folder with the packages' files, fetched on the first call. Raises `NoPackage`."""
    folders = [unpacked(name) for name in PACKAGES]
    return folders[0].parent


def entries(folder: Path, draw: Draw, sizes: Mapping[str, int]) -> list[Entry]:
    """As many of each subset as `sizes` says, in random order."""
    makers = {"foldoc": foldoc, "python": python, "postgresql": postgresql, "facts": facts}
    result = []
    for name, make in makers.items():
        drawn = list(make(folder, draw))
        draw.shuffle(drawn)
        seen: dict[str, Entry] = {}
        for entry in drawn:
            seen.setdefault(entry.term.lower(), entry)
        result += list(seen.values())[: sizes[name]]
    draw.shuffle(result)
    return result


def foldoc(folder: Path, draw: Draw) -> Iterator[Entry]:
    """Terms of the Free On-line Dictionary of Computing."""
    place = folder / "dict-foldoc/usr/share/dictd"
    text = gzip.decompress((place / "foldoc.dict.dz").read_bytes())
    for line in (place / "foldoc.index").read_text().splitlines():
        _, start, size = line.split("\t")
        entry = text[_number(start) : _number(start) + _number(size)].decode("utf-8", "replace")
        head, _, body = entry.partition("\n\n")
        term = head.strip().splitlines()[0].strip() if head.strip() else ""
        body = (
            re.sub(r"\s*\n\s*", " ", re.sub(r"\n\s*\n\s*", "¶", re.sub(r"[{}]", "", body))).replace("¶", "\n\n").strip()
        )
        body = re.sub(r"\s*(?:\[Jargon File\]|\(\d{4}-\d\d-\d\d\))\s*", "", re.sub(r"^<[^>]*> ", "", body))
        if re.fullmatch(r"[A-Za-z][\w+#./ '-]{2,40}", term) and len(body) > 150 and not body.startswith("00-"):
            yield Entry("foldoc", term, question_about(term, draw), f"{term}\n\n{body}"[:PASSAGE_CHARS], term)


def python(folder: Path, draw: Draw) -> Iterator[Entry]:
    """Questions of Python's FAQ, and sections of its library reference."""
    html = folder / "python3.11-doc/usr/share/doc/python3.11/html"
    for path in sorted([*(html / "faq").glob("*.html"), *(html / "library").glob("[a-p]*.html")]):
        for section in _sections(path):
            heading = section[0].replace("¶", "").replace("`", "")
            title = heading.split(" › ")[-1]
            module, dash, about = title.partition(" — ")
            if title.endswith("?"):
                # a later chunk has no heading: it may lack the question's words
                passage = section[1] if draw.random() < 0.5 else f"{heading}\n\n{section[1]}"
                yield Entry("python", title, title, passage[:PASSAGE_CHARS], title)
            elif dash:
                forms = (f"What is the {module} module of Python for?", f"How do I use {module}?", f"{about} in Python")
                yield Entry(
                    "python", module, draw.choice(forms), f"{heading}\n\n{section[1]}"[:PASSAGE_CHARS], path.stem
                )
            elif re.fullmatch(r"[\w .-]{8,60}", title) and title.lower() not in ("examples", "see also"):
                forms = (f"What are {title} in {path.stem}?", f"How do {title} work in Python's {path.stem}?")
                yield Entry(
                    "python", title, draw.choice(forms), f"{heading}\n\n{section[1]}"[:PASSAGE_CHARS], path.stem
                )


def postgresql(folder: Path, draw: Draw) -> Iterator[Entry]:
    """Pages of PostgreSQL's manual."""
    html = folder / "postgresql-doc-15/usr/share/doc/postgresql-doc-15/html"
    for path in sorted(html.glob("*.html")):
        if path.name.startswith(("release-", "bookindex", "legalnotice", "biblio")):
            continue
        for title, text in _sections(path)[:1]:
            term = re.sub(r"^(?:(?:Chapter|Appendix|Part) )?[\dA-Z]+(?:\.\d+)*\. ", "", title)
            if 3 < len(term) < 60:
                forms = (
                    f"How does {term} work?",
                    f"What does the manual say about {term}?",
                    f"Explain {term} in PostgreSQL",
                )
                # in two of three the title is part of the text, as in a chunk with its heading
                passage = text if draw.random() < 0.33 else f"{term}\n\n{text}"
                yield Entry("postgresql", term, draw.choice(forms), passage[:PASSAGE_CHARS], path.stem)


def _words(text: str) -> list[str]:
    return text.split()


COUNTRIES = (
    "United Kingdom/British France/French Germany/German Spain/Spanish Italy/Italian Poland/Polish Sweden/Swedish"
    " Norway/Norwegian Denmark/Danish Finland/Finnish Netherlands/Dutch Belgium/Belgian Portugal/Portuguese Greece/Greek"
    " Ireland/Irish Hungary/Hungarian Switzerland/Swiss Japan/Japanese China/Chinese India/Indian Canada/Canadian"
    " Australia/Australian Brazil/Brazilian Mexico/Mexican Egypt/Egyptian Kenya/Kenyan Turkey/Turkish Peru/Peruvian"
)
GIVEN = _words("Anna Peter Maria John Keir Elena Thomas Ingrid Samuel Laura Victor Helena Oscar Ruth Daniel Clara")
FAMILY = _words(
    "Holm Carter Novak Lindqvist Moreau Starmer Okafor Berger Costa Walsh Tanaka Ritter Dunne Varga Silva Price"
)
#: Role: templates of the statement, templates of the question.
ROLES = {
    "Prime Minister": (
        ("On {date} {person} became Prime Minister of {country}.", "{person} was sworn in as Prime Minister of {country} on {date}, after the election."),
        ("Who is the {people} Prime Minister?", "Who is Prime Minister of {country}?", "Who leads the government of {country}?"),
    ),
    "finance minister": (
        ("{person} has been finance minister of {country} since {date}.", "The finance minister of {country}, {person}, took office on {date}."),
        ("Who is the {people} finance minister?", "Who is {country}'s minister of finance?"),
    ),
    "chess champion": (
        ("{person} won the national chess championship of {country} on {date}.",),
        ("Who is the {people} chess champion?", "Who won the chess championship of {country}?"),
    ),
    "ambassador": (
        ("{country} named {person} as its ambassador to the United Nations on {date}.",),
        ("Who is the {people} ambassador to the United Nations?", "Who represents {country} at the United Nations?"),
    ),
}  # fmt: skip


def facts(_: Path, draw: Draw) -> Iterator[Entry]:
    """Dated facts with fictional persons: who holds an office in a country, also in questions with the country's adjective."""
    for one in re.findall(r"[A-Z][^/]*?/\w+", COUNTRIES):
        country, people = one.strip().split("/")
        for role, (statements, asking) in ROLES.items():
            date = f"{draw.randint(1, 28)} {draw.choice(('May', 'June', 'July'))} {draw.randint(2021, 2026)}"
            fields = {"country": country, "people": people, "date": date}
            person = f"{draw.choice(GIVEN)} {draw.choice(FAMILY)}"
            if country in ("United Kingdom", "Netherlands"):
                fields["country"] = f"the {country}"
            passage = draw.choice(statements).format(person=person, **fields)
            question = draw.choice(asking).format(**fields)
            yield Entry("facts", f"{role} {country}", question, passage[0].upper() + passage[1:], f"{role} {country}")


def question_about(term: str, draw: Draw) -> str:
    """A question about a term."""
    article = "an" if term[0].lower() in "aeiou" else "a"
    forms = (
        "What is {}?", "What is {a} {}?", "what does {} mean", "Define {}.", "Explain {} to me", "Tell me about {}",
        "Can you explain what {} is?", "{}", "What is the meaning of {}?",
    )  # fmt: skip
    return draw.choice(forms).format(term, a=article)


SYNONYMS = (
    "allows/lets use/employ uses/employs used/employed large/big small/little often/frequently usually/normally"
    " method/way show/display begin/start contains/holds returns/gives creates/makes various/several require/need"
    " requires/needs many/numerous developed/built error/fault fast/quick program/application example/instance"
)


def claims(passages: Sequence[str], draw: Draw, count: int) -> list[Claim]:
    """From up to `count` sentences: one paraphrase each, and one for each applicable way to make it wrong."""
    pool = [(i, passage[a:b]) for i, passage in enumerate(passages) for a, b in sentences(passage)]
    pool = [
        (i, " ".join(text.split()))
        for i, text in pool
        if text.endswith(".") and 7 <= len(text.split()) <= 35 and text[0].isalpha()
    ]
    draw.shuffle(pool)
    numbered = [one for one in pool if NUMBER.search(one[1])][: count // 3]
    pool = list(dict.fromkeys([*numbered, *pool]))
    names = sorted({name for _, text in pool for name in re.findall(r"(?<=\w )[A-Z][a-z]{2,}", text)})
    words = sorted({word for _, text in pool for word in re.findall(r"\b[a-z]{5,12}\b", text)})
    beside: list[str] = []
    wrong: Mapping[str, Callable[[str], str | None]] = {
        "number": lambda text: _other_number(text, draw),
        "number from beside": lambda text: _other_number(text, draw, beside) if beside else None,
        "name": lambda text: _swapped(
            text, r"(?<=\w )[A-Z][a-z]{2,}" if len(text.split()) > 6 else r"\b[A-Z][a-z]{2,}", names, draw
        ),
        "negation": lambda text: _negated(text),
        "word": lambda text: _swapped(text, r"(?<=\bthe )[a-z]{5,12}\b", words, draw),
    }
    result = []
    for i, text in pool[:count]:
        beside = NUMBER.findall(passages[i].replace(text, ""))
        term = passages[i].partition("\n")[0]
        if draw.random() < SHORT:
            text = _short(text, draw)
        result.append(Claim("told differently", _opened(_retold(text, term, draw), draw), True, i))
        for kind, corrupt in wrong.items():
            if (changed := corrupt(_retold(text, term, draw))) is not None:
                result.append(Claim(kind, _opened(changed, draw), False, i))
    return result


def fact_claims(facts: Sequence[tuple[int, Entry]], draw: Draw) -> list[Claim]:
    """Answers to the questions about facts in a model's style; wrong in the person, the day or the country."""
    person_of, date_of = re.compile(rf"(?:{'|'.join(GIVEN)}) (?:{'|'.join(FAMILY)})"), re.compile(r"\d+ \w+ \d{4}")
    countries = re.findall(r"([A-Z][a-z]+)/", COUNTRIES)
    result = []
    for i, entry in facts:
        role = next(role for role in ROLES if entry.term.startswith(role))
        country = entry.term.removeprefix(role).strip()
        person, date = person_of.search(entry.passage), date_of.search(entry.passage)
        assert person and date
        fields = {"role": role, "country": country, "person": person[0], "date": date[0]}
        others = {
            "person": f"{draw.choice(GIVEN)} {draw.choice([one for one in FAMILY if one not in person[0]])}",
            "date": f"{int(date[0].split()[0]) % 28 + 1} {date[0].partition(' ')[2]}",
            "country": draw.choice([one for one in countries if one not in entry.passage]),
        }
        for form in draw.sample(TELLING, 3):
            result.append(Claim("answer", form.format(**fields), True, i, entry.question))
            changed = draw.choice([key for key in others if f"{{{key}}}" in form])
            sentence = form.format(**{**fields, changed: others[changed]})
            result.append(Claim(f"answer, other {changed}", sentence, False, i, entry.question))
    return result


def _short(text: str, draw: Draw) -> str:
    """Shorten a sentence to a few words, like a terse model's answer."""
    words = text.split()
    starts = [i for i, word in enumerate(words) if i and word[0].isupper()] or range(len(words) - 3)
    start = draw.choice(list(starts))
    return " ".join(words[start : start + draw.randint(2, 6)]).strip(" ,;:(.") + "."


def _retold(text: str, term: str, draw: Draw) -> str:
    """Paraphrase: without parentheses, clauses swapped, synonyms."""
    if draw.random() < 0.5:
        text = re.sub(r" \([^()]*\)", "", text)
    if draw.random() < 0.4 and (match := re.fullmatch(r"(When|If|Since|Because|While|After) ([^,]+), (.+)\.", text)):
        text = f"{match[3][0].upper()}{match[3][1:]} {match[1].lower()} {match[2]}."
    if draw.random() < 0.3 and (match := re.fullmatch(r"(.{30,}?), (?:which|where|but|so|and|although) .*", text)):
        text = f"{match[1]}."
    for pair in SYNONYMS.split():
        old, new = pair.split("/")
        if draw.random() < 0.5:
            text = re.sub(rf"\b{old}\b", new, text)
    if draw.random() < 0.3 and re.match(r"(?:It|This) (?:is|was|can|has)\b", text) and len(term) < 60:
        text = re.sub(r"^\w+", term, text)
    return text


def _opened(text: str, draw: Draw) -> str:
    """Prepend an introductory phrase, as models do, half of the time."""
    openings = ("", "", "", "According to the documentation, ", "In short, ", "Note that ")
    opening = draw.choice(openings)
    return opening + (text[0].lower() + text[1:] if opening and text[1:2].islower() else text)


def _other_number(text: str, draw: Draw, others: Sequence[str] = ()) -> str | None:
    """Change one number, slightly or into one of `others`; None without numbers."""
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    match = draw.choice(matches)
    value = int(match[0])
    near = [str(value + 1), str(value + draw.randint(2, 9)), str(value * 2 + 1), str(abs(value - 1))]
    usable = [one for one in others or near if one not in text]
    return text[: match.start()] + draw.choice(usable) + text[match.end() :] if usable else None


def _swapped(text: str, pattern: str, others: Sequence[str], draw: Draw) -> str | None:
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    match = draw.choice(matches)
    usable = [one for one in others if one.lower() not in text.lower()]
    return text[: match.start()] + draw.choice(usable) + text[match.end() :] if usable else None


def _negated(text: str) -> str | None:
    if re.search(r"\bnot\b", text):
        return re.sub(r" not\b", "", text, count=1)
    negated, count = re.subn(r"\b(is|are|was|were|can|will|may|should|has been|must)\b", r"\1 not", text, count=1)
    return negated if count else None


def _sections(path: Path) -> list[tuple[str, str]]:
    """(Heading or title, text) of an HTML page, without sections that are too short."""
    try:
        text = convert(path.read_bytes(), path.name)
    except ConversionError:
        return []
    return [
        (section.heading or text.title, body)
        for section in text.sections
        if len(body := re.sub(r"[*`]|\n ", lambda mark: " " if mark[0] == "\n " else "", section.text)) > 150
        and not body.startswith(("- ", "Table of Contents"))
    ]


def _number(digits: str) -> int:
    """Decode a number of dictd's index: base 64, the highest digit first."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value
