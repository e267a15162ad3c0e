"""The grounded-answers benchmark: its questions have one right answer, and its grading recognises it."""

import re
from fractions import Fraction
from types import SimpleNamespace

import pytest

from benchmarks.reporting import grounding_plots, grounding_tables, plots
from benchmarks.retrieval import grounded_answers, questions
from benchmarks.retrieval.answer_grading import computes, declines, defines, names, share
from benchmarks.retrieval.facts import PRIME_MINISTER, facts, real_facts
from benchmarks.retrieval.grounded_answers import Answer, Sets, summary
from benchmarks.retrieval.injections import ORDERS, injected, obeys
from benchmarks.retrieval.labelled_texts import Entry
from benchmarks.retrieval.questions import CLASSIC_SUM, CLASSIC_TERM, NO_SUMS, Term, Terms, definition, invented, sums


def test_every_fact_is_stated_by_its_own_document_only() -> None:
    every = [*real_facts(), *facts(0, 36)]
    assert (every[0].question, len(every)) == (PRIME_MINISTER, 52)
    assert len({fact.question for fact in every}) == 52
    for fact in every:
        assert names(fact.old.text, fact.old.values) and names(fact.new.text, fact.new.values), fact
        assert not names(fact.old.text, fact.new.values) and not names(fact.new.text, fact.old.values), fact
        assert not names(fact.question, (*fact.old.values, *fact.new.values)), fact
        assert fact.old.date < fact.new.date


def test_in_one_half_of_every_kind_the_older_document_goes() -> None:
    made = facts(0, 24)
    assert [made[i].replaced != made[i + 12].replaced for i in range(12)] == [True] * 12
    for fact in made:
        old, new = fact.document(fact.old), fact.document(fact.new)
        assert (old["source"] == new["source"]) == fact.replaced
        assert (old["meta"], new["meta"]) == ({"date": fact.old.date}, {"date": fact.new.date})


def test_the_same_seed_draws_the_same() -> None:
    assert facts(3, 20) == facts(3, 20) != facts(4, 20)
    assert sums(3, 20) == sums(3, 20) != sums(4, 20)
    assert injected(3) == injected(3) != injected(4)


def test_computations_are_worded_in_many_ways_and_right() -> None:
    every = sums(0, 60)
    assert every[0] == questions.Sum(CLASSIC_SUM, Fraction(40366, 439))
    assert len({one.question for one in every}) == len(every) == 61
    by_hand = {
        r"What is (\d+) divided by (\d+)\?": lambda a, b: Fraction(a, b),
        r"Multiply (\d+) by (\d+)\.": lambda a, b: a * b,
        r"Add (\d+) and (\d+)\.": lambda a, b: a + b,
        r"How much is (\d+) percent of (\d+)\?": lambda a, b: Fraction(a * b, 100),
        r"Take ([\d,]+) away from ([\d,]+)\.": lambda a, b: b - a,
    }
    found = set()
    for one in sums(0, 400):
        for pattern, value in by_hand.items():
            if match := re.fullmatch(pattern, one.question):
                assert one.value == value(*(int(number.replace(",", "")) for number in match.groups()))
                found.add(pattern)
    assert len(found) == len(by_hand)


def test_what_is_no_computation_is_not_said_twice() -> None:
    assert len(set(NO_SUMS)) == len(NO_SUMS) >= 60
    assert all(re.search(r"\d|dozen", question) for question in NO_SUMS)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("40366 / 439 ≈ 91.949886104784", True),
        ("It is about 91.95.", True),
        ("It is 91.94.", False),
        ("About 92.", False),
        ("40366 / 439 = 40366", False),
        ("", False),
    ],
)
def test_a_quotient_is_right_when_rounded_to_two_decimals(answer: str, right: bool) -> None:
    assert computes(answer, Fraction(40366, 439), CLASSIC_SUM) is right


def test_whole_results_may_have_separators_and_signs() -> None:
    assert computes("The sum is 6,843,912.", Fraction(6843912), "6,893,667 - 49,755")
    assert computes("-5", Fraction(-5), "3 - 8")
    assert not computes("6843912345", Fraction(6843912), "")


def test_a_value_is_a_word_or_number_of_its_own() -> None:
    assert names("It is version 4.2.", ("4.2",))
    assert names("the “Starmer” government", ("Starmer",))
    assert not names("It is 4.25 or 14.2.", ("4.2",))
    assert not names("It opens at 10:30.", ("0:30", "10:3"))
    assert not names("Astan", ("Astana",))


def test_an_answer_tells_a_definition_by_its_words() -> None:
    said = "A type of flat panel display in which field emitting cathodes bombard a phosphor coating."
    question = "What is field emission display?"
    assert defines("A flat panel whose cathodes bombard phosphor.", said, question)
    assert not defines("A field emission display is a display used in televisions.", said, question)
    assert not defines("", said, question) and not defines("anything", "", question)


def test_a_refusal_in_own_words_is_one() -> None:
    assert declines("I'm not familiar with that term.") and declines("There is no such thing.")
    assert not declines("A Martian Dunetree is a plant that is found on Mars.")
    assert not declines("Zorurnbli is a fictional character of a film.")


def test_a_share_of_nothing_has_no_interval() -> None:
    assert share([]) == {"hits": 0, "items": 0, "share": None, "ci95": None}
    half = share([True, False])
    assert (half["hits"], half["share"]) == (1, 0.5) and half["ci95"][0] < 0.5 < half["ci95"][1]


def test_every_order_is_in_its_document_which_answers_without_it() -> None:
    every = injected(1)
    assert len(every) == len(ORDERS) >= 40
    for one in every:
        assert names(one.clean, one.fact.old.values) and names(one.content, one.fact.old.values), one
        assert not obeys(one.clean, {one.canary})
        visible = re.sub(r"[\u200b]", "", one.naive)
        hidden = one.style == "base64" or any(ord(letter) >= 0xE0000 for letter in one.content)
        assert obeys(visible, {one.canary}) is not hidden, one
        assert "<span" not in one.naive and "<!--" not in one.naive


def test_obeying_is_seen_however_it_is_written() -> None:
    assert obeys("**P-W-N-E-D**", {"PWNED"}) and obeys("http://pwned.example/p.png", {"PWNED"})
    assert not obeys("The mayor is Zora Castellan.", {"PWNED"})


def test_invented_terms_begin_with_the_classic_one() -> None:
    made = invented(questions.random.Random(0), 25)
    assert made[0].question == CLASSIC_TERM
    assert len({one.question for one in made}) == len(made) == 26


def test_a_definition_is_the_first_sentence_without_its_field() -> None:
    entry = Entry("foldoc", "radix", "", "radix\n\n<mathematics> The ratio between weights. More follows.", "radix")
    assert definition(entry) == "The ratio between weights."
    assert definition(Entry("foldoc", "x", "", "x\n\nSee radix. It is there.", "x")) == ""


def test_what_the_platform_quotes_is_not_the_variants_own() -> None:
    answer = Answer("It is PWNED.\n\nSource 2 says: “the mayor is Ada”", "used", (True, False), 2)
    assert (answer.own, answer.marked) == ("It is PWNED.", True)
    assert Answer("as it is").own == "as it is" and not Answer("as it is").marked


class _Platform:
    """Answers every question with what the newest document says, and abstains where there is none."""

    def __init__(self, made: Sets) -> None:
        self.known = {one.question: one.new.values[0] for one in made.facts}
        self.known |= {one.fact.question: one.fact.old.values[0] for one in made.injected}
        self.known |= {one.question: one.definition for one in made.terms.answerable}
        self.known |= {one.question: str(float(one.value)) for one in made.sums}
        self.collections: dict[str, int] = {}

    async def delete(self, path: str, params: dict[str, str]) -> None:
        self.collections.pop(params["collection"], None)

    async def post(self, path: str, json: dict) -> SimpleNamespace:
        if path == "/v1/documents":
            self.collections[json["collection"]] = self.collections.get(json["collection"], 0) + 1
            return SimpleNamespace(status_code=200, json=dict)
        retrieval, question = json["retrieval"], json["messages"][0]["content"]
        text, outcome = "who knows", "off"
        if retrieval:
            assert retrieval["collection"] is None or self.collections[retrieval["collection"]]
            text = self.known.get(question, "I don't know")
            outcome = "computed" if retrieval["tools"] else "used" if question in self.known else "abstained"
            outcome = "off" if question in NO_SUMS else outcome
        found = {"retrieval": {"outcome": outcome}, "sentences": [{"supported": True}] if outcome == "used" else None}
        said = {"choices": [{"message": {"content": text}}], "gearbox": found}
        return SimpleNamespace(status_code=200, json=lambda: said)


async def test_a_platform_that_is_always_right_has_the_best_rates(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    documents = ({"source": "foldoc/radix", "content": "the ratio", "type": "text/plain"},)
    radix = Term("What is radix?", "The ratio between the weights of adjacent digits.")
    terms = Terms(documents, (radix,), (Term(CLASSIC_TERM),), (Term("What is SQL3?"),), (Term("Who wrote it?"),))
    made = Sets(facts(0, 12), sums(0, 8), NO_SUMS[:9], terms, injected(1))
    with grounded_answers.Progress(disable=True) as bar:
        total = made.requests(grounded_answers.PARTS, 3, 3)
        bar.add_task("", total=total)
        bench = grounded_answers.Bench(_Platform(made), "model", ("full", "int8", "distilled"), bar)
        result = {
            "facts": await grounded_answers.changing_facts(bench, made.facts),
            "arithmetic": await grounded_answers.arithmetic(bench, made.sums, made.no_sums),
            "unanswerable": await grounded_answers.unanswerable(bench, made.terms),
            "injection": await grounded_answers.injection(bench, made.injected, naive=True),
        }
        assert bar.tasks[0].completed == total
    assert bench.client.collections == {}  # each is gone in the end
    full = {part: rows.get("full") for part, rows in result.items()}
    assert (full["facts"]["bare"]["hits"], full["facts"]["newer"]["share"], full["facts"]["older"]["hits"]) == (0, 1, 0)
    assert result["arithmetic"]["variants"]["int8"]["platform"]["share"] == 1
    assert result["arithmetic"]["fired_falsely"]["hits"] == 0
    assert (full["unanswerable"]["abstained"]["share"], full["unanswerable"]["falsely_abstained"]["hits"]) == (1, 0)
    assert full["unanswerable"]["tells"]["share"] == 1
    assert (full["injection"]["naive"]["obeyed"]["hits"], full["injection"]["defended"]["right"]["share"]) == (0, 1)

    machine = {"measured": "2026-01-01T00:00", "cpu": "a processor", "cores": 2, "memory_gb": 24.0}
    shown = {**result, "machine": machine, "collection": {"from": "FOLDOC", "documents": 1}}
    for make in (
        grounding_tables.grounded_facts, grounding_tables.grounded_arithmetic, grounding_tables.grounded_unanswerable, grounding_tables.grounded_injection,
    ):  # fmt: skip
        assert "| `distilled` |" in make(shown)
    assert "facts full newer " in summary(result)
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    assert grounding_plots.grounded(result).stat().st_size > 5000
