"""Intent detection: what a tool answers without a model, in several languages, and what is left to the model.

How well it does on questions that nobody here wrote is measured by `benchmarks.retrieval.computation`.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from serve.tools import intent, units, vocabulary
from serve.tools.intent import detect, load, may_compute

NOW = datetime(2026, 11, 25, 3, 40, tzinfo=UTC)


def answer(question: str) -> str | None:
    result = detect(question, ("calculator", "clock"), NOW, UTC)
    return result and result.answer


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 40366 / 439?", "40366 / 439 ≈ 91.949886104784"),
        ("What is 15% of $80?", "15 / 100 * 80 = 12"),
        ("Subtract 36 from 5.", "5 - 36 = -31"),
        ("What is 1 divided by 0?", "1 / 0: a division by zero has no result"),
        ("Zwei plus zwei?", "2 + 2 = 4"),
        ("Combien font quatre-vingt-dix moins dix ?", "90 - 10 = 80"),
        ("98.6 °F in °C", "98.6 degrees Fahrenheit = 37 degrees Celsius"),
        ("convierte 5 millas a kilómetros", "5 millas = 8,04672 kilómetros"),
        ("How many months are there in 2 years?", "2 years = 24 months"),
        ("5 kilonewtons to newtons", "5 kilonewton = 5,000 newtons"),
        ("5 cm to m", "5 centimeters = 0.05 meters"),
        ("convert inch to cm", "1 inch = 2.54 centimeters"),
        ("What time is it in Pacific Time?", "Tuesday, November 24, 2026, 7:40:00\u202fPM Pacific Standard Time"),
        ("how many days until Christmas", "30 days (November 25, 2026 – December 25, 2026)"),
        ("In 5 days from today, what will the date be?", "Monday, November 30, 2026"),
        ("What day of the week was 4 July 1976?", "Sunday, July 4, 1976"),
        ("How many days from November 1 to December 24?", "53 days (November 1, 2026 – December 24, 2026)"),
        ("How many days between December 20 and January 5?", "16 days (December 20, 2026 – January 5, 2027)"),
        (
            "Wie viele Tage sind es vom 1. November bis zum 24. Dezember?",
            "53 Tage (1. November 2026 – 24. Dezember 2026)",
        ),
        ("How many days from today to November 24?", "364 days (November 25, 2026 – November 24, 2027)"),
        ("How many days from today to February 29?", "461 days (November 25, 2026 – February 29, 2028)"),
        ("How many days from December 24 to today?", "29 days (November 25, 2026 – December 24, 2026)"),
        (
            "How many days from November 1, 2025 to December 24, 2027?",
            "783 days (November 1, 2025 – December 24, 2027)",
        ),
        ("What percentage of 80 is 20?", "20 / 80 * 100 = 25"),
        ("Wie viele Tage sind es bis zum 24. Dezember?", "29 Tage (25. November 2026 – 24. Dezember 2026)"),
    ],
)
def test_a_computation_is_answered_in_the_language_of_the_question(question, expected):
    assert answer(question) == expected


@pytest.mark.parametrize(
    "question",
    [
        "What percent is 20 of 80?", "Wie viel Prozent sind 20 von 80?",  # of 20 is 80, or is 20 of 80
        "What happened on 9/11?", "2024-05-01", "What is 1914 - 1918?", "How to convert RAID5 to RAID10?",
        "What is the sum of all numbers from 1 to 100?", "three and a half times two", "What is $10 + £4?", "200 + 10%",
        "What day is 3/4/2025?", "-87 rankine in kelvin", "mm in inches", "How do you convert ounces to kilos?", "How many days are there in 3 months?", "1 + 1" + " " * 300 + "?", "",
    ],
)  # fmt: skip
def test_anything_else_is_left_to_the_model(question):
    assert answer(question) is None


@pytest.mark.parametrize(
    "question",
    [
        "What is 22 divided by 7, rounded to 3 decimals?", "Can you subract 36 from 5?", "2nd root of 100",
        "Jason had 20 lollipops. He gave Denny some. Now Jason has 12 lollipops. How many did he give to Denny?",
    ],
)  # fmt: skip
def test_what_may_be_a_computation_is_told_from_what_is_none(question):
    assert answer(question) is None
    assert may_compute(question)
    assert not may_compute("What is the part number of the P-440?")
    assert not may_compute("Which seal kit fits the pump?")


PIECES = (
    "1 + ", "2 feet ", "seven hundred ", "quatre-vingt-dix ", "3, ", "5% of ", "sqrt ", "(", "9", "10^", "1e9 ", "m ", "°f ", "may 1 ",
    "1 jan 2020 ", "today ", "in 5 days ", "pacific time ", "not found in the ", "\u2003",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "sum of ", "how many days between ", "what time is it in "])
def test_hostile_questions_take_less_than_50_ms(start):
    load()
    for piece in PIECES:
        for chars in (200, 500, 20_000):
            text = (start + piece * chars)[:chars]
            for function in (may_compute, answer):
                assert any(_cpu_ms(function, text) < 50 for _ in range(3)), (function, text[:60], chars)


def _cpu_ms(function: Callable[[str], object], text: str) -> float:
    started = time.thread_time()
    function(text)
    return (time.thread_time() - started) * 1000


def test_vocabularies_are_loaded_once_by_threads_that_detect_together():
    for cache in (intent._codes_by_word, vocabulary.languages, units._registry, units._unit):
        cache.cache_clear()
    questions = [
        "98.6 °F in °C",
        "convierte 5 millas a kilómetros",
        "What is 40366 / 439?",
        "how many days until Christmas",
    ] * 4
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(answer, questions)) == [answer(question) for question in questions]
    assert intent._codes_by_word.cache_info().misses == 1
