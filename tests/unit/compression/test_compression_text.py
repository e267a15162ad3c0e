"""Training and held-out text never overlap."""

import random
import sysconfig
from pathlib import Path

import pytest

from compression.text import (
    Corpus,
    Document,
    TextError,
    all_ngrams,
    file_documents,
    held_out_sequences,
    is_held_out,
    load_corpus,
    sequences_digest,
    shared_ngrams,
    training_sequences,
    word_ngrams,
)


class Words:
    """A tokenizer of one token a word."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(self.words[token] for token in tokens)


def prose(seed: int, words: int) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(500)}" for _ in range(words))


def test_sequences_that_share_thirteen_words_with_the_training_text_are_dropped() -> None:
    shared = prose(1, 13)
    words = Words()
    held_out = Document("h", f"{prose(2, 40)} {prose(3, 10)} {shared} {prose(4, 17)} {prose(5, 40)}")
    corpus = Corpus("test", (Document("t", f"{prose(6, 50)} {shared} {prose(7, 50)}"),), (held_out,))
    held_out = held_out_sequences(corpus, words.encode, words.decode, length=40, count=10)
    assert [words.decode(s) for s in held_out] == [prose(2, 40), prose(5, 40)]


def test_twelve_shared_words_are_allowed() -> None:
    words = Words()
    corpus = Corpus("test", (Document("t", f"{prose(1, 12)} end"),), (Document("h", f"{prose(1, 12)} {prose(2, 28)}"),))
    assert len(held_out_sequences(corpus, words.encode, words.decode, length=40, count=10)) == 1


def test_case_and_punctuation_do_not_hide_an_overlap() -> None:
    assert list(word_ngrams("One, two. THREE!", 3)) == list(word_ngrams("one two three", 3))


def test_nothing_left_to_measure_on_is_an_error() -> None:
    words = Words()
    corpus = Corpus("notes.txt", (Document("t", prose(1, 60)),), (Document("h", prose(1, 60)),))
    with pytest.raises(TextError, match=r"no held-out text: notes.txt"):
        held_out_sequences(corpus, words.encode, words.decode, length=40, count=10)


def test_an_empty_calibration_set_is_an_error() -> None:
    words = Words()
    corpus = Corpus("notes.txt", (Document("t", "three short words"),), ())
    with pytest.raises(TextError, match="calibration set is empty"):
        training_sequences(corpus, words.encode, length=40, end=0, seed=0)


def test_training_order_follows_the_seed_and_the_measured_set_does_not() -> None:
    words = Words()
    documents = tuple(Document(f"t{i}", prose(i, 30)) for i in range(9))
    corpus = Corpus("test", documents, (Document("h", prose(99, 90)),))
    one, same, other = (training_sequences(corpus, words.encode, 20, 0, seed) for seed in (1, 1, 2))
    assert one == same != other
    digests = {sequences_digest(held_out_sequences(corpus, words.encode, words.decode, 40, 9)) for _ in range(2)}
    assert len(digests) == 1


@pytest.fixture(scope="module")
def python() -> Corpus:
    """Python's documentation, which takes seconds to read."""
    return load_corpus()


@pytest.mark.slow
def test_pythons_own_documentation_is_split_by_document(python: Corpus) -> None:
    assert {d.name for d in python.training}.isdisjoint(d.name for d in python.held_out)
    assert sum(len(d.text) for d in python.training) > 1_000_000
    assert all(is_held_out(d.name) for d in python.held_out)


@pytest.mark.slow
def test_pythons_held_out_documentation_shares_nothing_with_what_is_trained_on(python: Corpus) -> None:
    tokens: list[str] = []

    def encode(words: str) -> list[int]:
        begin = len(tokens)
        tokens.extend(words.split())
        return list(range(begin, len(tokens)))

    def decode(row: list[int]) -> str:
        return " ".join(tokens[token] for token in row)

    rows = held_out_sequences(python, encode, decode, 300, 12)
    training = all_ngrams(document.text for document in python.training)
    assert shared_ngrams(training, map(decode, rows)) == 0
    everything = shared_ngrams(training, (document.text for document in python.held_out))
    assert everything > 0, "the documents do overlap before it is removed"


def test_the_same_documentation_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(sysconfig.get_path("stdlib")) / "asyncio"  # all modules take 5 s
    monkeypatch.setattr("compression.text.sysconfig.get_path", lambda _: str(package))
    corpus, again = load_corpus(), load_corpus()
    assert any(document.name.startswith("module:") for document in corpus.training)
    assert corpus.digest == again.digest


def test_a_users_file_is_split_into_documents(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n\n".join(prose(i, 120) for i in range(2000)))
    corpus = load_corpus(file)
    assert "".join(d.text for d in corpus.training + corpus.held_out).count("w") == 2000 * 120
    assert 5 < len(corpus.training) / len(corpus.held_out) < 12


def test_a_missing_or_tiny_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="cannot read the text file"):
        load_corpus(tmp_path / "none.txt")
    (tmp_path / "tiny.txt").write_text("hello")
    with pytest.raises(TextError, match="too few"):
        load_corpus(tmp_path / "tiny.txt")


PARAGRAPHS = [prose(i, 100) for i in range(400)]  # about 400 characters each


def texts(file: Path, content: str | bytes) -> list[str]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [document.text for document in file_documents(file)]


@pytest.mark.parametrize(
    "content",
    [
        "\n\n".join(PARAGRAPHS) + "\n",
        "\n\n".join(PARAGRAPHS) + "\n" * 800,
        "\n" * 9 + "\n\n".join(PARAGRAPHS),
        "\n\n\n\n".join(PARAGRAPHS),
        "\n \t\n".join(PARAGRAPHS) + "\n  \n   ",
        "\r\n\r\n".join(PARAGRAPHS) + "\r\n\r\n\r\n",
        "\ufeff" + "\n\n".join(PARAGRAPHS),
    ],
    ids=["newline", "blank_end", "blank_start", "many_blank", "spaces", "crlf", "bom"],
)
def test_blank_lines_line_ends_and_marks_change_nothing(tmp_path: Path, content: str) -> None:
    plain = texts(tmp_path / "plain.txt", "\n\n".join(PARAGRAPHS))
    assert 30 < len(plain) < 50
    assert "\n\n".join(plain) == "\n\n".join(PARAGRAPHS)
    assert texts(tmp_path / "mine.txt", content) == plain


def test_a_last_paragraph_that_stands_earlier_too_ends_nothing_early(tmp_path: Path) -> None:
    content = "\n\n".join(["same", *PARAGRAPHS[:5], "same", *PARAGRAPHS[5:20], "same"])
    assert 1 < len(texts(tmp_path / "mine.txt", content)) < 4


@pytest.mark.parametrize("title", ["", "A title\n\n"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_one_paragraph_a_line_is_understood(tmp_path: Path, title: str, ends: str) -> None:
    documents = texts(tmp_path / "mine.txt", title + ends.join(PARAGRAPHS))
    assert 30 < len(documents) < 50
    assert "\n".join(documents).removeprefix(title) == "\n".join(PARAGRAPHS)
    assert max(map(len, documents)) < 5000
    corpus = load_corpus(tmp_path / "mine.txt")
    assert corpus.training and corpus.held_out


def test_a_wrapped_paragraph_stays_whole(tmp_path: Path) -> None:
    content = "\n\n".join(paragraph.replace(" ", "\n") for paragraph in PARAGRAPHS)
    assert "\n\n".join(texts(tmp_path / "mine.txt", content)) == content


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b" \r\n\t\r\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_says_so(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TextError, match="has no text in it"):
        texts(tmp_path / "mine.txt", content)


def test_text_in_another_encoding_says_so(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="it is not UTF-8"):
        texts(tmp_path / "mine.txt", "Grüße".encode("utf-16"))


def test_one_line_without_an_end_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(" ".join(PARAGRAPHS))
    with pytest.raises(TextError, match=r"1 documents are too few.*at blank lines or at the ends of lines"):
        load_corpus(tmp_path / "mine.txt")
