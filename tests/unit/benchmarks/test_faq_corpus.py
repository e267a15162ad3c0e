"""FAQ documents: questions with the text that answers them, from any format; sources split by a hash."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.retrieval import faq_corpus, packages
from benchmarks.retrieval.faq_parsing import QuestionAnswer, parse
from benchmarks.retrieval.packages import NoPackage
from compression.build.source import SourceError

ANSWER = "Yes, it does, if the option is set in the file of settings. Otherwise it stops."
SECOND = "Run the command with the name of the file; it prints every line that has changed."
EXPECTED = [
    QuestionAnswer("Does it work without a network?", ANSWER),
    QuestionAnswer("How do I see what has changed?", SECOND),
]
FORMATS = {
    "headings.html": f"<h1>FAQ</h1><ul><li><a href='#a'>Does it work without a network?</a></ul><h2 id=a>1.1. Does it work without a network?¶</h2><p>{ANSWER}</p><h2>How do I see what has changed?</h2><p>{SECOND}<h2>Contact</h2><p>Write to us.",
    "terms.html": f"<dl><dt>Q: Does it work without a network?<dd>A: {ANSWER}<dt><b>Q:</b> How do I see what has changed?<dd>{SECOND}</dl>",
    "bold.html": f"<p><b>[1.1] Does it work without a network?</b></p><p>{ANSWER}<p><strong>How do I see what has changed?</strong><p>{SECOND}",
    "rows.html": f"<table><tr class=question><td>F:<td>Does it work without a network?<tr><td>A:<td>{ANSWER}<tr class=question><td>F:<td>How do I see what has changed?<tr><td>A:<td>{SECOND}</table>",
    "labels.txt": f"Q: Does it work without a network?\nA: {ANSWER}\n\nQ: How do I see\n   what has changed?\nA: {SECOND}\n",
    "numbers.txt": f"  1.1 Does it work without a network?\n\n      {ANSWER}\n\n  1.2 How do I see what has changed?\n\n      {SECOND}\n",
    "underlined.txt": f"Does it work without a network?\n-------------------------------\n{ANSWER}\n\nHow do I see what has changed?\n-----------------------------\n{SECOND}\n",
    "faq.pod": f"=head1 Questions\n\n=head2 Does it work without a network?\nX<network>\n\n{ANSWER}\n\n=head2 How do I B<see> what has changed?\n\n{SECOND}\n",
    "faq.md": f"# FAQ\n\n## Does it work without a network?\n\n{ANSWER}\n\n  * **2. How do I see what has changed?**\n\n{SECOND}\n",
    "faq.json": json.dumps(
        {
            "items": [
                {"q": "Does it work without a network?", "a": ANSWER},
                {"question": EXPECTED[1].question, "answer": SECOND},
            ]
        }
    ),
}


def test_every_format_gives_the_same_questions_and_answers(tmp_path: Path) -> None:
    found = {}
    for name, text in FORMATS.items():
        (tmp_path / name).write_text(text)
        found[name] = parse([tmp_path / name])
    assert found == dict.fromkeys(FORMATS, EXPECTED)


def test_compressed_files_and_other_encodings_are_read(tmp_path: Path) -> None:
    text = "Q: Läuft es auch ohne ein Netz?\nA: Ja, wenn es in den Einstellungen so steht; sonst hört es nach einer Weile auf.\n"
    (tmp_path / "FAQ.gz").write_bytes(gzip.compress(text.encode("latin-1")))
    assert [item.question for item in parse([tmp_path / "FAQ.gz"])] == ["Läuft es auch ohne ein Netz?"]


def test_questions_without_a_sentence_as_answer_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "faq.html").write_text(
        f"<h2>Where is the manual then?</h2><p>See above.<h2>Why?</h2><p>{ANSWER}<h2>Does it work without a network?</h2><p>{ANSWER}"
    )
    assert parse([tmp_path / "faq.html"]) == EXPECTED[:1]


def test_the_split_keeps_translations_together_and_never_changes() -> None:
    parts = {source.family: source.part for source in faq_corpus.sources()}
    assert all(source.part == parts[source.family] for source in faq_corpus.sources())
    assert [parts[family] for family in ("perl", "cvs", "python")] == ["calibration", "development", "untouched"]


@pytest.fixture
def two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two FAQs in one part, each with a specific and a general question."""
    families = [name for name in map(str, range(50)) if faq_corpus.part_of(name) == "calibration"][:2]
    table = [f"{family} en {family} faq.txt FAQ {family}" for family in families]
    monkeypatch.setattr(faq_corpus, "_TABLE", "\n".join(table))
    monkeypatch.setattr(faq_corpus, "unpacked", lambda name: tmp_path / name)
    for family, thing in zip(families, ("turbine", "harpsichord"), strict=True):
        (tmp_path / family / "usr/share").mkdir(parents=True)
        text = f"Q: How do I tune the {thing} of it?\nA: {ANSWER}\n\nQ: Where do I find more help?\nA: {SECOND}\n"
        (tmp_path / family / "usr/share/faq.txt").write_text(text)
    faq_corpus.items.cache_clear()
    faq_corpus._source_frequencies.cache_clear()
    yield
    faq_corpus.items.cache_clear()
    faq_corpus._source_frequencies.cache_clear()


@pytest.mark.usefixtures("two_sources")
def test_a_source_gets_its_own_specific_questions_and_those_of_another() -> None:
    asked = faq_corpus.questions("calibration")
    assert Counter(question.kind for question in asked) == {"answered": 2, "left out": 2, "other source": 2}
    assert not any("help" in question.text for question in asked), "any source may answer it"
    for question in asked:
        own = question.text in [item.question for item in faq_corpus.items(_source(question.collection))]
        assert own == (question.kind != "other source")
        assert (question.gold is not None) == (question.kind == "answered")
    assert asked == faq_corpus.questions("calibration")


def _source(name: str) -> faq_corpus.Source:
    return next(source for source in faq_corpus.sources() if source.name == name)


def test_an_unreachable_registry_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARBOX_CACHE_DIR", str(tmp_path))

    def unreachable(requirement: str, folder: Path) -> None:
        raise SourceError("is there a network?")

    monkeypatch.setattr(packages, "download_wheel", unreachable)
    with pytest.raises(NoPackage, match="PyPI's package some-faq could not be fetched: is there a network"):
        packages.unpacked("pypi:some-faq")
    assert not (tmp_path / "packages/pypi-some-faq").exists()
