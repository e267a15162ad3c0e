"""Computations that nobody here wrote, with their results, and questions that are none.

- `humanizer`: questions of a captcha in 19 languages, with their answers (github.com/kiskolabs/humanizer, MIT).
- `goodies`: queries in the tests of DuckDuckGo's instant answers, with the results expected there
  (github.com/duckduckgo/zeroclickinfo-goodies, Apache-2.0).
- `clinc`: utterances to an assistant (github.com/clinc/oos-eval, CC BY 3.0). Their results are in `computation_answers.json`, by a hash of
  the utterance.
- `mathematics`: textbook questions that DeepMind's `mathematics-dataset` of PyPI makes, with their results.
- `word problems`: the few-shot examples of GSM8K in PyPI's `lm_eval`. They take several steps, are for a model, and are counted apart.
- FAQ documents of Debian and PyPI packages, of `faq_corpus`: none is a computation.

Repositories are read from a folder of clones, packages are downloaded; no text is stored in this repository. Half of the questions of each
source, by a hash, is untouched: nothing was developed with it.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from text_to_num import alpha2digit

from benchmarks.retrieval import faq_corpus
from benchmarks.retrieval.packages import unpacked

TODAY = date(2016, 8, 3)  # of the goodies' tests
CONVERSIONS = 50  # of the goodies' tests, which have hundreds
ANSWERS = Path(__file__).with_name("computation_answers.json")
_TEXT2NUM = ("en", "de", "fr", "es", "it", "pt", "nl", "da")


@dataclass(slots=True, frozen=True)
class Item:
    """A question. `result` is a number, a day, a number of days or a time zone's name; None for what is no computation."""

    text: str
    result: str | None
    kind: str
    language: str
    source: str

    @property
    def is_untouched(self) -> bool:
        """Whether the question is of the untouched half."""
        return bool(int(hashlib.sha256(self.text.encode()).hexdigest(), 16) // 7 % 2)


def digest(text: str) -> str:
    """A hash of a question, by which it is named here."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def items(repositories: Path) -> Iterator[Item]:
    """All questions. `repositories` has clones of humanizer, oos-eval and zeroclickinfo-goodies."""
    yield from _humanizer(repositories / "humanizer")
    yield from _goodies(repositories / "zeroclickinfo-goodies")
    yield from _clinc(repositories / "oos-eval")
    yield from _mathematics()
    yield from _word_problems()
    yield from _faqs()


def _file(repository: Path, path: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repository), "show", f"HEAD:{path}"], check=True, capture_output=True, text=True
    ).stdout


def _humanizer(repository: Path) -> Iterator[Item]:
    folder = "lib/generators/templates/locales"
    names = subprocess.run(
        ["git", "-C", str(repository), "ls-tree", "--name-only", "HEAD", f"{folder}/"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in names:
        language = Path(name).stem
        content = yaml.safe_load(_file(repository, name))
        for entry in next(iter(content.values()))["humanizer"]["questions"]:
            answers = entry.get("answers", entry.get("answer"))
            answers = [str(one) for one in (answers if isinstance(answers, list) else [answers])]
            result = next((one for one in answers if one.isdecimal()), None)
            short = language.partition("-")[0]
            text = str(entry["question"])
            numbers = _numbers(text, short)
            computed = result is not None and len(numbers) == 2 and Fraction(result) in _combined(*numbers)
            known_unit = (
                result in ("24", "60", "7", "12") and not numbers
            )  # minutes of an hour: a conversion, not a computation
            if not known_unit:
                yield Item(
                    text, result if computed else None, "four operations" if computed else "none", short, "humanizer"
                )


def _numbers(text: str, language: str) -> list[Fraction]:
    digits = alpha2digit(text, language, threshold=0) if language in _TEXT2NUM else text
    found = [Fraction(one) for one in re.findall(r"\d+", digits)]
    if language not in _TEXT2NUM and len(found) < 2:
        return []
    return found


def _combined(first: Fraction, second: Fraction) -> set[Fraction]:
    return {first + second, first - second, first * second, *({first / second} if second else ())}


def _goodies(repository: Path) -> Iterator[Item]:
    item = partial(Item, language="en", source="goodies")
    tests = {
        name: _file(repository, f"t/{name}.t")
        for name in ("DaysBetween", "Average", "Tips", "CalcRoots", "Conversions", "Calculator")
    }
    for name, test in tests.items():
        for query in re.findall(r"""^\s*['"]([^'"]+)['"]\s*=>\s*undef,""", test, re.M):
            if name != "Calculator" and not re.search(r"\d.*(?:%|percent|root).*\d", query):
                yield item(query, None, "none")
    for query, count in re.findall(
        r"^\s*'([^']+)'\s*=> build_test\('[^']*', '[^']*', (\d+), ''", tests["DaysBetween"], re.M
    ):
        yield item(query, f"{count} days", "dates")
    for query, kind, result in re.findall(
        r"""^\s*['"]([^'"]+)['"]\s*=> build_test\('[^']*', '(\w+)', '([\d.]+)'""", tests["Average"], re.M
    ):
        if kind == "Mean":
            yield item(query, result, "textbook")
    for query, percent, bill in re.findall(
        r"^\s*'([^']+)'\s*=> build_test\('([\d.]+)', '([\d.]+)'\)", tests["Tips"], re.M
    ):
        yield item(query, str(Fraction(percent) * Fraction(bill) / 100), "percentages")
    for query, result in re.findall(
        r"""^\s*['"]([^'"]+)['"]\s*=> build_test\('\d', *'\d+', *'The \d-root of \d+ is ([\d.]+?)\.?'""",
        tests["CalcRoots"],
        re.M,
    ):
        yield item(query, result, "textbook")
    conversion = r"'([^']+)' => test_zci\(\s*'',\s*structured_answer => make_answer\(\{\s*raw_input => '([\d.]+)',\s*from_unit => '(\w+)',\s*to_unit => '(\w+)'"
    for query, value, source, target in sorted(
        re.findall(conversion, tests["Conversions"]), key=lambda row: digest(row[0])
    )[:CONVERSIONS]:
        if (result := _gnu_units(value, source, target)) is not None:
            yield item(query, result, "units")
    for query, expression in re.findall(r"'([^']+)' => build_test\(\s*[\"']([^\"']+)[\"']\s*\)", tests["Calculator"]):
        if (value := _python(expression)) is not None:
            yield item(query, value, "notation")


def _python(expression: str) -> str | None:
    """The value of an expression of numbers and operators, by Python; None for any other."""
    expression = re.sub(r"(?<=\d),(?=\d{3})", "", expression).replace("^", "**").replace("×", "*").replace("÷", "/")
    if not re.fullmatch(r"[\d\s.+\-*/()]+", expression) or not re.search(r"\d\s*[-+*/]", expression):
        return None
    try:
        return repr(eval(expression, {"__builtins__": {}}))
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None


def _gnu_units(value: str, source: str, target: str) -> str | None:
    """A conversion by GNU units."""
    folder = unpacked("units")
    binary, data = folder / "usr/bin/units", folder / "usr/share/units/definitions.units"
    renamed = {"usgallon": "gallon", "kmh": "km/hour", "metricton": "tonne"}
    done = subprocess.run(
        [str(binary), "-f", str(data), "-t", "-o", "%.12g", f"{value} {renamed.get(source, source)}", renamed.get(target, target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout.strip()
    return output if re.fullmatch(r"-?[\d.]+(?:e[-+]?\d+)?", output) else None


def _clinc(repository: Path) -> Iterator[Item]:
    splits: dict[str, list[list[str]]] = json.loads(_file(repository, "data/data_full.json"))
    answers: dict[str, list[str]] = json.loads(ANSWERS.read_text())
    left = dict.fromkeys(("with numbers", "without"), 250)
    for text, intent in sorted(
        {(text, intent) for rows in splits.values() for text, intent in rows}, key=lambda row: digest(row[0])
    ):
        if intent in ("calculator", "measurement_conversion", "date", "time"):
            if (answer := answers.get(digest(text))) is not None:
                yield Item(text, answer[1], answer[0], "en", "clinc")
        elif intent not in ("timezone", "tip", "exchange_rate"):
            kind = "with numbers" if re.search(r"\d", text) else "without"
            left[kind] -= 1
            if left[kind] >= 0:
                yield Item(text, None, "none", "en", "clinc")


def _mathematics() -> Iterator[Item]:
    """Textbook questions, the same at every call."""
    script = Path(__file__).with_name("mathematics_questions.py")
    import sys

    rows: list[dict[str, Any]] = json.loads(subprocess.run(
        [sys.executable, str(script), str(unpacked("pypi:mathematics-dataset==1.0.1")), str(unpacked("pypi:absl-py==2.3.1"))],
        check=True, capture_output=True, text=True,
    ).stdout)  # fmt: skip
    for row in rows:
        yield Item(row["text"], row["result"], row["kind"], "en", "mathematics")


def _word_problems() -> Iterator[Item]:
    path = unpacked("pypi:lm-eval==0.4.13") / "lm_eval/tasks/gsm8k/gsm8k-cot.yaml"
    for question, answer in re.findall(r"question: (.+?)\n\s+target: .+?The answer is (\d+)", path.read_text(), re.S):
        yield Item(" ".join(question.split()), answer, "word problem", "en", "word problems")


def _faqs() -> Iterator[Item]:
    for source in faq_corpus.sources():
        for one in faq_corpus.items(source):
            yield Item(one.question, None, "none", source.language, "FAQs")
