"""Regular expressions, and loops around them, take linear time for any text from clients, models or documents (no ReDoS).

`regex_probe` finds the patterns and times each on texts generated from it; tests check what it must find and report.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document

from serve.retrieval.verify import faithfulness as scoring
from serve.retrieval.verify import sentences as splitter
from serve.retrieval.verify.sentence_selector import SentenceSelector, question_weights, select_sentences
from serve.retrieval.verify.sentences import sentences
from serve.retrieval.verify.unknown_words import MAX_QUESTION_CHARS, unknown_words
from serve.retrieval.verify.words import parts
from serve.tools import calculator, clock, question_forms
from serve.tools.intent import detect

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PACKAGES = ("serve", "deployments", "compression", "helm")
DEADLINE_S = 200  # of all patterns together, which take a few seconds
LONG = 100_000
TOOLS = ("calculator", "clock")
LIMIT_S = 3.0  # CPU seconds for one long text, which takes 0.3 at most


def probe(*arguments: str, patterns: Sequence[tuple[str, int, Sequence[str]]] = ()) -> dict[str, Any]:
    """What `regex_probe` says of packages, or of patterns with their flags and methods."""
    command = [sys.executable, "-m", "tests.support.regex_probe", *arguments]
    try:
        done = subprocess.run(
            command, input=json.dumps(patterns), capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE_S
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"a pattern hangs: {(error.stderr or b'').decode().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def probed() -> dict[str, Any]:
    return probe(str(ROOT), *PACKAGES)


def test_no_pattern_takes_more_than_linear_time(probed):
    assert probed["slow"] == []


def test_no_pattern_escapes_the_probe(probed):
    assert probed["offences"] == []


def test_the_probe_sees_patterns_wherever_they_are(probed):
    methods = {(where.partition(":")[0], pattern): used for where, pattern, used in probed["patterns"]}
    assert methods["serve/retrieval/verify/faithfulness.py", scoring._COURTESY.pattern] == ["fullmatch"]  # from a file
    assert methods["serve/retrieval/verify/sentences.py", splitter._END.pattern] == ["finditer"]
    for pattern, _ in question_forms._SHAPES:  # compiled in a comprehension
        assert methods["serve/tools/question_forms.py", pattern.pattern] == ["fullmatch"]
    assert methods["serve/config/http_tools.py", "[A-Za-z0-9-]+"] == ["fullmatch"]  # not compiled
    assert any(file == "deployments/fetch.py" for file, _ in methods)
    assert any(file == "serve/retrieval/ingest/formats/html.py" for file, _ in methods)  # bytes


# What was in the code once, and what is often written.
SLOW = [
    (r"(a+)+$", 0, ["search"]),
    (r"(?:(?:hello|hi|thanks|(?:please )?let me know\b.*|i hope\b.*)\W*)+", 2, ["fullmatch"]),
    (r"sum of (-?\d[\d,]*?(?:\.\d+)?(?:(?:, and |, | and )-?\d[\d,]*?(?:\.\d+)?)+)", 0, ["fullmatch"]),
    (r"(?:\s*=\s*\??)?\s*$", 0, ["sub"]),
    (r"""[.!?…]+["'”’)\]*_`]*(?=\s)|[。！？]""", 0, ["finditer"]),
    (r"^(?:running|waiting|gearbox_requests_in_flight)\{[^}]*\} (\S+)$", 8, ["findall"]),
    (r'^vllm:cache_config_info\{[^}]*caching="True"[^}]*kv_cache_size_tokens="(\d+)"', 8, ["search"]),
    (r"^(?P<indent> *)(?:# ?(?P<comment>.*)|(?P<key>[A-Za-z0-9_.-]+):(?: .*)?|.*)$", 0, ["match"]),
    (r"x (?P<day>.+?) (?:and|to) (?P<until>.+?)", 0, ["fullmatch"]),
    (r"(\w+)/(\w+)", 0, ["findall"]),
    (r":[\w:+.-]+:`([^`]*)`", 0, ["sub"]),
    (r"<a [^>]*>.*?</a>", 16, ["sub"]),
    (r'"(?:[^"\\]|\\.)*"', 0, ["findall"]),
    (r"^(\w+\s?)*$", 0, ["match"]),
    (r"(.*)(\d+)(.*)!", 0, ["fullmatch"]),
    (r"[\w.-]+@[\w.-]+", 0, ["search"]),
]
LINEAR = [
    (r"\d+!", 0, ["fullmatch", "match"]),  # not to be searched for
    (r"\A---\n.*?\n(?:---|\.\.\.)\n", 16, ["match"]),
    (r"(?:a++)+$", 0, ["match"]),
    (r"(?<!\s)\s++$", 0, ["sub"]),
    (r"\b\w+\b", 0, ["findall"]),
    (r"(?>hello|let me know\b.*+|\W++)++", 2, ["fullmatch"]),
    (r'"[^"\n]*+"', 0, ["match"]),
]


def test_slow_patterns_are_caught_and_linear_ones_are_not():
    found = probe(patterns=[*SLOW, *LINEAR])
    assert {int(said.split()[0]) for said in found["slow"]} == set(range(len(SLOW))), found["slow"]


def test_what_hides_a_pattern_is_an_offence(tmp_path):
    package = tmp_path / "hiding"
    package.mkdir()
    files = {
        "__init__": "",
        "classes": "import re\nclass A:\n    held = {'a': [re.compile('(b+)+$')]}\n    def run(self): return self.held",
        "inline": "import re\ndef run(text): return re.sub('(c+)+$', '', text, flags=re.I)",
        "built": "import re\nPARTS = [re.compile(f'({letter}+)+$') for letter in 'de']",
        "dynamic": "import re\ndef run(pattern, text): return re.search(pattern, text)",
        "imported": "from re import compile\nX = compile('(f+)+$')",
        "renamed": "import re as r\nX = r.compile('(g+)+$')",
        "other": "import regex",
        "passed": "import re\nX = list(map(re.compile, ['(h+)+$']))",
        "aliased": "import re\nother = re\nX = other.compile('(i+)+$')",
        "heavy": "import re\nimport torch\nX = re.compile(f'({1}+)+$')\n",
        "unimported": "import re\nimport torch\nX = re.compile('(l+)+$')\ndef run(text): return X.search(text)\n",
        "binary": "import re\nX = re.compile(rb'(m+)+$')\ndef run(text): return X.search(text)\n",
        "flags": "import re\ndef run(text, flags): return re.search('j', text, flags)",
        "helper": "import re\ndef make(x): return re.compile(f'({x}+)+$')\nX = make('k')",
        "called": "import re\ndef make(x): return re.compile(f'({x}+)+$')\nX = make('l')\ndef run(x): return make(x)",
        "escaped": "import re\ndef run(x, text): return re.split(re.escape(x), text)",
        "never": "import re\nif re is None:\n    X = re.compile(str(1))",
    }
    for name, code in files.items():
        (package / f"{name}.py").write_text(code)
    found = probe(str(tmp_path), "hiding")
    assert {said.split("+")[0][-1] for said in found["slow"]} == set("bcdeklm")
    offences = {Path(said.split(":")[0]).stem for said in found["offences"]}
    assert offences == {
        "dynamic",
        "called",
        "imported",
        "renamed",
        "other",
        "passed",
        "aliased",
        "heavy",
        "flags",
        "never",
    }


# --- whole functions on long texts

PIECES = (
    "please ", "let me know ", "hello hi ", "thank you let me know. ", "not found in the ", "1+1+", "(", "-", "((1)", "sqrt(",
    '"“\'"”', '."', ".", ". ", "!? ", "...\n", "Dr. ", "e.g. ", "No. 5. ", "\n1. ", "\n- a", "\n", " ", "\n ", "```", "`",
    "| a | b. |\n", "1,", "1,000,", "1, and ", "a, b and c, ", "one and ", "one hundred and ", "2 million ", "[1, 2] ", "[1,",
    "1.5.", "1%", "half of ", "A b. ", "A", "é", "。", "b+#", "İ. ", " to ", "monday ", "\x00", "\u200b", "\u2003",
)  # fmt: skip


@contextmanager
def bounded(cpu_s: float = LIMIT_S) -> Iterator[None]:
    """Fails when more CPU time is taken. A match that never ends is stopped."""

    def stop(*_: object) -> None:
        pytest.fail(f"took more than {cpu_s} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


async def embed(sentences: Sequence[str]) -> scoring.Vectors:
    return np.ones((len(sentences), 2), np.float32)


def check(text: str) -> object:
    passages = [scoring.Passage("", one) for one in (text[: LONG // 10], "The tower is 330 m high. It is in Paris.")]
    return asyncio.run(scoring.check_answer(text, passages, embed, question="How high is the tower?"))


def support(text: str) -> object:
    return unknown_words(text[:MAX_QUESTION_CHARS], [text])


def focus(text: str) -> object:
    documents = [Document(content=text, meta={"title": "The tower"}), Document(content="It is high.", meta={})]
    return SentenceSelector().run("How high is the tower of Paris?", documents)


def test_bounded_stops_what_does_not_end():
    import re

    with pytest.raises(pytest.fail.Exception, match="CPU time"), bounded(0.2):
        re.fullmatch(r"(?:a|a)+b", "a" * 60)


@pytest.mark.parametrize("function", [check, support, focus], ids=lambda one: one.__name__)
def test_long_texts_are_read_in_linear_time(function: Callable[[str], object]):
    for piece in PIECES:
        with bounded():
            function(piece * (LONG // len(piece)))


@pytest.mark.parametrize(
    "text",
    [
        "(" * (LONG // 2) + "A bee. " * (LONG // 14),  # nothing before the names but signs
        "```a. ```b. " * (LONG // 12),  # as many ends as fences
        "A." + " " * (LONG // 2) + "b. " * (LONG // 6),
        "a. " * (LONG // 3),  # as many sentences as can be
        " ".join(f"w{number}." for number in range(LONG // 8)),  # and all different
        " ".join(f"W{number} w{number}" for number in range(LONG // 14)),
        "\n".join("say \"he said 'she said “" for _ in range(LONG // 25)),
        "please let me know " * 5 + "!",
        "Selon l'" + "a" * LONG,
        "aaaaaa. " * (LONG // 8),
        "。" * LONG,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_loops_around_patterns_are_linear_too(text):
    passages = [text] * 8
    with bounded():
        sentences(text)
    with bounded(2 * LIMIT_S):
        sources = [scoring.Passage(text, one) for one in passages]
        asyncio.run(scoring.check_answer(text, sources, embed, question=text[:MAX_QUESTION_CHARS]))
    with bounded():
        unknown_words(text[:MAX_QUESTION_CHARS], passages)
    with bounded(2 * LIMIT_S):
        select_sentences(question_weights(text, [(text, one) for one in passages]), text, text[:1_000])


def test_what_could_be_computed_is_read_in_linear_time():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for chars in (LONG, calculator.MAX_CHARS, clock.MAX_CHARS):
        for piece in PIECES:
            for start in ("", "sum of ", "how many days between ", "9"):
                text = (start + piece * (chars // len(piece)))[: chars - 1] + "x"
                with bounded():
                    detect(text, TOOLS, now, UTC)
                    calculator.answer(text)
                with bounded(), suppress(clock.ClockError):
                    clock.parse_day(text, now.date())


# --- bounds of length


def test_a_question_that_nobody_could_mean_to_be_computed_is_not_read():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert detect("1+1" + " " * LONG, TOOLS, now, UTC) is None
    assert detect("what day is it" + "?" * LONG, TOOLS, now, UTC) is None
    with pytest.raises(clock.ClockError, match="is no date"):
        clock.parse_day("today" + " " * LONG, now.date())


def test_of_a_long_answer_only_whole_sentences_are_checked():
    async def checked(answer: str) -> list[scoring.CheckedSentence]:
        return await scoring.check_answer(answer, [scoring.Passage("", "The tower is high.")], embed)

    first = "The tower is high. "
    cut = asyncio.run(checked(first + "word " * LONG))
    assert [(one.start, one.end) for one in cut] == [(0, len(first) - 1)]
    assert asyncio.run(checked(" " * 2 * LONG)) == []
    assert asyncio.run(checked("x" * 2 * LONG)) == []


def test_a_long_word_is_truncated():
    assert list(parts("b" * LONG)) == ["b" * 64]
