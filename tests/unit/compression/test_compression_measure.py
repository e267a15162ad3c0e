"""What is rejected before the engine starts, and a training text that leaks into the held-out one. The engine is a fake."""

import random
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import make_card, write_variant
from compression import text
from compression.measure import variant as measure
from compression.measure.tasks import Item, Task
from compression.measure.variant import check_training_text, load_held_out, main
from compression.text import Corpus, Document, TextError, all_ngrams, load_corpus, shared_ngrams
from serve.card import load_card
from tests.support.fake_served import FakeServed


def prose(seed: int, words: int) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(500)}" for _ in range(words))


def corpus(*held_out: str) -> Corpus:
    training = tuple(Document(f"t{i}", prose(i, 60)) for i in range(5))
    return Corpus("test", training, tuple(Document(f"h{i}", words) for i, words in enumerate(held_out)))


def test_a_leaked_document_is_left_out_and_its_absence_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked = corpus(prose(3, 60), prose(99, 60))
    served = FakeServed(max_model_len=151)
    training = all_ngrams(document.text for document in leaked.training)
    found = load_held_out(served, leaked, training)
    assert [served.decode(row) for row in found.sequences] == [prose(99, 60)[:150]]
    assert (found.shared_ngrams, found.training_digest) == (0, leaked.training_digest)

    def without_removal(corpus, encode, decode, length, count):
        return [encode(document.text)[:length] for document in corpus.held_out]

    monkeypatch.setattr(measure, "held_out_sequences", without_removal)
    with pytest.raises(TextError, match=r"\d+ runs of 13 words of the held-out text occur in the training text"):
        load_held_out(served, leaked, training)


def test_shared_runs_are_counted_once_each() -> None:
    training = all_ngrams([prose(1, 20)])
    assert shared_ngrams(training, [prose(2, 20)]) == 0
    assert shared_ngrams(training, [prose(1, 20).upper(), prose(1, 20)]) == 20 - 13 + 1
    assert shared_ngrams(training, [" ".join(prose(1, 20).split()[:12])]) == 0


def test_the_training_digest_follows_the_training_side_alone() -> None:
    one = corpus("held out")
    assert one.training_digest == corpus("other").training_digest
    assert one.digest != corpus("other").digest
    changed = Corpus("test", (*one.training, Document("t9", "more")), one.held_out)
    assert changed.training_digest != one.training_digest


def test_a_variant_that_was_trained_on_other_text_is_not_measured() -> None:
    check_training_text(make_card(), corpus())
    check_training_text(make_card(training_digest=corpus().training_digest), corpus())
    with pytest.raises(TextError, match="'distilled' was calibrated or trained on other text than test"):
        check_training_text(make_card("distilled", training_digest="sha256:other"), corpus())


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An int8 and a full whose engine must not start; Python's documentation, which takes seconds to read, is replaced."""
    short = corpus(prose(99, 60))

    def start(*_: object) -> None:
        raise AssertionError("the engine was started")

    monkeypatch.setattr(measure, "load_corpus", lambda file: load_corpus(file) if file else short)
    monkeypatch.setattr(measure, "definitions", lambda training: Task("definitions", (Item("a", "b", ("b", "c")),)))
    monkeypatch.setattr(measure, "_start_engine", start)
    monkeypatch.setattr(measure, "progress_on_stdout", lambda: lambda *_: None)
    return write_variant(tmp_path / "int8", make_card("int8")), write_variant(tmp_path / "full")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quality-from", "colour"], "no quality from 'colour': give kl, agreement or task:NAME"),
        (["--quality-from", "task:none"], "NAME one of arithmetic, definitions"),
        (["--quality-from", "task:arithmetic"], "'full' was not evaluated on the same items of the task 'arithmetic'"),
        (["--tasks", "/nowhere.jsonl"], "cannot read the task /nowhere.jsonl"),
        (["--text", "/nowhere.txt"], "cannot read the text file /nowhere.txt"),
        (["--full", "/nowhere"], "no card.json in /nowhere"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_one_line_before_the_engine_starts(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    variant, full = folders
    before = (variant / "card.json").read_bytes()
    assert main(["--variant", str(variant), "--full", str(full), *more]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and message in line and "\n" not in line
    assert (variant / "card.json").read_bytes() == before


def test_a_card_of_another_training_text_is_refused_by_the_command(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    variant, full = folders
    load_card(variant).model_copy(update={"training_digest": "sha256:0"}).save(variant)
    assert main(["--variant", str(variant), "--full", str(full)]) == 2
    assert "trained on other text" in capsys.readouterr().err
    assert text.NGRAM_WORDS == 13
