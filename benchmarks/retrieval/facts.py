"""Changing facts for `benchmarks.retrieval.grounded_answers`: each with an older and a newer document that states it.

Most are about fictional towns, firms and clubs, so that no model can know them; `REAL_FACTS` are real.
Random choices are seeded.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REAL_FACTS = Path(__file__).parent / "real_facts.json"
PRIME_MINISTER = "Who is the British Prime Minister?"


@dataclass(slots=True, frozen=True)
class Statement:
    """A document's statement of the fact at one time."""

    date: str  # ISO
    text: str
    values: tuple[str, ...]  # each is a correct answer


@dataclass(slots=True, frozen=True)
class Fact:
    """A question whose answer changed."""

    name: str
    title: str
    question: str
    old: Statement
    new: Statement
    replaced: bool  # the newer document replaces the older one; else both are indexed

    def document(self, statement: Statement) -> dict[str, object]:
        """The document in the format of `POST /v1/documents`, without the collection."""
        beside = "" if self.replaced or statement is self.old else f"-{statement.date}"
        return {
            "source": f"facts/{self.name}{beside}.md",
            "content": f"# {self.title}\n\n{statement.text}\n",
            "meta": {"date": statement.date},
        }


@dataclass(slots=True, frozen=True)
class Kind:
    """A kind of facts: templates of its statement, its question and the sentences beside it."""

    name: str
    subject: Callable[[random.Random], str]
    title: str
    questions: tuple[str, ...]
    value: Callable[[random.Random], str]
    statements: tuple[str, ...]
    beside: tuple[str, ...]


def facts(seed: int, count: int) -> list[Fact]:
    """`count` fictional facts of all kinds in turn; in every second one the older document is replaced."""
    draw = random.Random(seed)
    known: set[str] = set()  # subjects, so that no two facts are about the same
    result = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        subject = _new(kind.subject, draw, known)
        values: set[str] = set()
        pair = [_new(kind.value, draw, values) for _ in range(2)]
        if kind.value is _version:
            pair.sort(key=float)
        beside = _beside(kind, subject, draw, values)
        years = (draw.randint(2022, 2025), 2026)
        statements = zip(draw.sample(kind.statements, 2), pair, years, strict=True)
        old, new = (
            _statement(sentence.format, subject, value, year, beside, draw) for sentence, value, year in statements
        )
        question, title = draw.choice(kind.questions).format(subject=subject), kind.title.format(subject=subject)
        replaced = i // len(KINDS) % 2 == i % 2  # kinds are even in number: each is in both halves
        result.append(Fact(f"{kind.name}-{i}", title, question, old, new, replaced))
    return result


def real_facts() -> list[Fact]:
    """Real facts, the British Prime Minister first."""
    result = []
    for i, row in enumerate(json.loads(REAL_FACTS.read_text())):
        old, new = (Statement(one["date"], one["text"], tuple(one["values"])) for one in (row["old"], row["new"]))
        result.append(Fact(row["name"], row["title"], row["question"], old, new, replaced=i % 2 == 0))
    return result


def _beside(kind: Kind, subject: str, draw: random.Random, values: set[str]) -> list[str]:
    """Other sentences about the subject."""
    day, number, year = draw.choice(_DAYS), f"{draw.randint(11, 98) * 100:,}", str(draw.randint(1880, 1990))
    return [
        one.format(subject=subject, day=day, number=number, year=year, other=_new(person, draw, values))
        for one in kind.beside
    ]


def _statement(
    sentence: Callable[..., str], subject: str, value: str, year: int, beside: list[str], draw: random.Random
) -> Statement:
    """Text with the fact among two to six other sentences."""
    month = draw.randint(1, 9)
    around = draw.sample(beside, draw.randint(2, 6))
    fact = sentence(subject=subject, value=value, when=f"{_MONTHS[month - 1]} {year}")
    around.insert(draw.randint(0, len(around)), fact)
    return Statement(f"{year}-{month:02d}-{draw.randint(1, 28):02d}", " ".join(around), (value,))


def _new(make: Callable[[random.Random], str], draw: random.Random, known: set[str]) -> str:
    """A new subject that is not in `known`; it is added."""
    while (subject := make(draw)) in known:
        pass
    known.add(subject)
    return subject


def person(draw: random.Random) -> str:
    """A common person's name."""
    return f"{draw.choice(_GIVEN)} {draw.choice(_FAMILY)}"


def town(draw: random.Random) -> str:
    """Name of a fictional town."""
    return draw.choice(_FORE) + draw.choice(_AFT)


def _firm(draw: random.Random) -> str:
    return f"{draw.choice(_FORE)}{draw.choice(('is', 'en', 'or', 'ane'))} {draw.choice(_TRADES)}"


def _program(draw: random.Random) -> str:
    return draw.choice(_FORE) + draw.choice(("werk", "kit", "base", "flow", "mesh", "pad"))


def _version(draw: random.Random) -> str:
    return f"{draw.randint(2, 19)}.{draw.randint(0, 9)}"


def _crowns(draw: random.Random) -> str:
    return f"{draw.randint(4, 48)} crowns"


def _hour(draw: random.Random) -> str:
    return f"{draw.randint(6, 11)}:{draw.choice(('15', '30', '45'))}"


def _room(draw: random.Random) -> str:
    return f"{draw.choice('ABCDEFGH')}{draw.randint(10, 89)}"


def _people(draw: random.Random) -> str:
    return f"{draw.randint(11, 97)},{draw.randint(101, 989)}"


def _race(draw: random.Random) -> str:
    return f"{town(draw)} {draw.choice(('Marathon', 'Ridge Race', 'Night Run'))}"


def _club(draw: random.Random) -> str:
    return f"{town(draw)} {draw.choice(('Rovers', 'Harriers', 'Comets', 'Wanderers'))}"


def _words(text: str) -> list[str]:
    return text.split()


_MONTHS = _words("January February March April May June July August September October November December")
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday")
_GIVEN = _words(
    "Ada Bruno Carla Dmitri Edda Farid Greta Hugo Ilse Jonas Karin Luis Mirela Nils Olga Pavel Rosa Stefan Tilda Ugo "
    "Vera Wanda Xenia Yusuf Zora"
)
_FAMILY = _words(
    "Achterberg Bellini Castellan Dragan Ekholm Farrow Gentile Halvorsen Iversen Jansky Kowalik Lemaire Marchetti "
    "Nygaard Oduya Petrescu Quist Rasmus Sandoval Thorne Ulrich Vasquez Weller Yardley Zielinski"
)
_FORE = _words("Lark Dun Fern Orl Tam Kess Brack Wyn Hol Mar Thist Pell Grim Ash Cald Ven Sor Ald Rook Elm")
_AFT = _words("haven more wick stead ford mouth bury dale holm gate")
_TRADES = _words("Optics Shipping Foods Textiles Motors Instruments")

KINDS = (
    Kind(
        "mayor", town, "{subject} town council", ("Who is the mayor of {subject}?", "Who is {subject}'s mayor?"),
        person,
        (
            "{value} has been mayor of {subject} since {when}.",
            "The mayor of {subject} is {value}, who took office in {when}.",
            "In {when} the people of {subject} elected {value} as their mayor.",
        ),
        (
            "{subject} is a harbour town with {number} households.",
            "The council meets on {day}s in the old customs house.",
            "{other} runs the town library.", "The market square was paved in {year}.",
            "The treasurer, {other}, publishes the accounts every spring.",
            "A ferry crosses the bay three times a day.",
        ),
    ),
    Kind(
        "chief", _firm, "About {subject}", ("Who is the chief executive of {subject}?", "Who is the CEO of {subject}?"),
        person,
        (
            "{value} became chief executive (CEO) of {subject} in {when}.",
            "Since {when} {subject} has been led by its chief executive {value}, the CEO.",
            "The chief executive (CEO) of {subject} is {value}, appointed in {when}.",
        ),
        (
            "{subject} employs {number} people.", "{other} is the head of research.", "The firm was founded in {year}.",
            "Its finances are looked after by {other}.", "Visitors are received on {day}s.",
            "It sells to forty countries.",
        ),
    ),
    Kind(
        "headquarters", _firm, "{subject}: offices",
        ("Where is the headquarters of {subject}?", "Where does {subject} have its headquarters?"), town,
        (
            "The headquarters of {subject} have been in {value} since {when}.",
            "In {when} {subject} opened its headquarters in {value}.",
            "{subject} has its headquarters in {value}, where it settled in {when}.",
        ),
        (
            "The firm was founded in {year} by {other}.", "{number} people work there.",
            "Its canteen is open to neighbours on {day}s.",
            "{other} is responsible for the buildings.", "A second shift was introduced for the night.",
            "Deliveries are taken at the back gate.",
        ),
    ),
    Kind(
        "version", _program, "{subject} release notes",
        ("What is the latest version of {subject}?", "Which version of {subject} is the latest?"), _version,
        (
            "Version {value} is the latest version of {subject}; it came out in {when}.",
            "The latest version of {subject} is {value}, released in {when}.",
            "In {when} {subject} {value} was released, which is the latest version.",
        ),
        (
            "{subject} is a program that plans the work of weaving mills.", "{other} wrote the first prototype.",
            "It is used by {number} mills.", "The manual has been translated by {other}.",
            "Support answers from Monday to {day}.",
            "Licences are sold by the year.",
        ),
    ),
    Kind(
        "ticket", town, "Museum of {subject}",
        ("How much is a ticket for the museum of {subject}?", "What does a ticket for the {subject} museum cost?"),
        _crowns,
        (
            "A ticket for the museum of {subject} costs {value} since {when}.",
            "Since {when} the price of a ticket for the {subject} museum has been {value}.",
            "In {when} the museum of {subject} set the price of a ticket at {value}.",
        ),
        (
            "The collection was given to the town in {year} by {other}.", "{number} visitors came last summer.",
            "The museum is closed on {day}s.",
            "{other} guides groups through the cellar.", "Dogs have to wait outside.",
            "The tower can be climbed in good weather.",
        ),
    ),
    Kind(
        "record", _race, "{subject} records",
        ("Who holds the record of the {subject}?", "Who is the record holder of the {subject}?"), person,
        (
            "{value} holds the record of the {subject}, run in {when}.",
            "The record of the {subject} has been held by {value} since {when}.",
            "In {when} {value} set the record of the {subject} and is its record holder.",
        ),
        (
            "The race was first run in {year}.", "{number} runners start every year.", "{other} designed the medal.",
            "The course crosses two bridges.",
            "Numbers are handed out on {day} evening.", "The race doctor is {other}.",
        ),
    ),
    Kind(
        "opening", town, "{subject} public library",
        ("When does the library of {subject} open?", "At what time does the {subject} library open?"), _hour,
        (
            "The library of {subject} opens at {value} since {when}.",
            "Since {when} the {subject} library opens its doors at {value}.",
            "In {when} {subject} decided that its library opens at {value} every day.",
        ),
        (
            "It lends {number} books.", "{other} reads to children on {day}s.", "The building dates from {year}.",
            "Late books cost nothing.",
            "The reading room has been painted by {other}.", "A bookbus visits the villages.",
        ),
    ),
    Kind(
        "coach", _club, "{subject}", ("Who coaches {subject}?", "Who is the coach of {subject}?"), person,
        (
            "{value} is the coach of {subject} and has coached the team since {when}.",
            "In {when} {subject} signed {value} as coach.",
            "The coach of {subject} has been {value} since {when}.",
        ),
        (
            "The club was founded in {year}.", "The ground holds {number} people.", "{other} is the captain.",
            "Training is on {day} evening.",
            "{other} scored most goals last season.", "The colours are green and white.",
        ),
    ),
    Kind(
        "capital", lambda draw: f"{town(draw)}shire", "The province of {subject}",
        ("What is the capital of {subject}?", "Which town is the capital of {subject}?"), town,
        (
            "The capital of {subject} has been {value} since {when}.",
            "In {when} {value} became the capital of {subject}.",
            "{value} is the capital of {subject}, by a law of {when}.",
        ),
        (
            "{subject} is known for its orchards.", "The province has {number} farms.", "Its governor is {other}.",
            "The railway came in {year}.",
            "Markets are held on {day}s.", "{other} drew the map that hangs in the assembly.",
        ),
    ),
    Kind(
        "room", _firm, "{subject} staff notes",
        ("In which room is the help desk of {subject}?", "Which room is the {subject} help desk in?"), _room,
        (
            "The help desk of {subject} is in room {value} since {when}.",
            "Since {when} you find the {subject} help desk in room {value}.",
            "In {when} the help desk of {subject} moved into room {value}.",
        ),
        (
            "{other} hands out keys.", "Bicycles are left in the yard.", "Lunch is at noon, on {day}s with soup.",
            "There are {number} lockers.",
            "The lift dates from {year}.", "Lost property is kept by {other}.",
        ),
    ),
    Kind(
        "population", town, "{subject} in numbers",
        ("How many people live in {subject}?", "What is the population of {subject}?"), _people,
        (
            "{value} people live in {subject} by the count of {when}.",
            "The population of {subject} was {value} people in {when}.",
            "By {when} the population of {subject}, the people who live there, came to {value}.",
        ),
        (
            "The registry is led by {other}.", "The town hall was built in {year}.", "Two rivers meet below the mill.",
            "The registry is open on {day}s.",
            "{other} keeps the parish books.", "Half of the houses have gardens.",
        ),
    ),
    Kind(
        "editor", lambda draw: f"{town(draw)} {draw.choice(('Courier', 'Gazette', 'Observer'))}", "The {subject}",
        ("Who is the editor of the {subject}?", "Who edits the {subject}?"), person,
        (
            "{value} has edited the {subject} since {when} as its editor.",
            "In {when} {value} became editor of the {subject}.",
            "The {subject} has an editor, {value}, since {when}.",
        ),
        (
            "The paper appears on {day}s.", "It prints {number} copies.", "{other} draws the cartoons.",
            "It was first sold in {year}.",
            "Letters are answered by {other}.", "The crossword is on the last page.",
        ),
    ),
)  # fmt: skip
