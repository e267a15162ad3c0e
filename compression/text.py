"""Calibration and training text, and the disjoint held-out text for evaluation; no download needed.

The default text ships with Python itself (PSF licence): the language reference and the standard library's docstrings.
A user's text file replaces it. The split depends on the text alone, so every variant of a family is measured on the same
held-out tokens, whatever its seed.
"""

import ast
import hashlib
import platform
import random
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from compression.errors import UserError

Encode = Callable[[str], list[int]]

NGRAM_WORDS = 13  # the length at which GPT-3 (Brown et al. 2020, appendix C) calls an overlap contamination
HELD_OUT_LENGTH = 512  # tokens of one held-out sequence
HELD_OUT_COUNT = 24
HELD_OUT_ONE_IN = 8  # one document in this many is held out
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "ensurepip"}
)
_MIN_DOCUMENT_CHARS = 400  # characters


class TextError(UserError):
    """Text that is missing or too short for its purpose."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, in the training split or in the held-out split, never in both."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text in two disjoint splits."""

    description: str
    training: tuple[Document, ...]
    held_out: tuple[Document, ...]

    @property
    def digest(self) -> str:
        """sha256 over every document and its split."""
        return hashlib.sha256(f"{self.training_digest} {_documents_digest(self.held_out)}".encode()).hexdigest()

    @property
    def training_digest(self) -> str:
        """sha256 over the training split, which is also the calibration text."""
        return f"sha256:{_documents_digest(self.training)}"


def text_identity(file: Path | None) -> str:
    """Identity of the text of `load_corpus(file)`, for keys: each Python version has documentation of its own.

    Raises:
        TextError: the file cannot be read.
    """
    if file is None:
        return f"python {platform.python_version()}"
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise TextError(f"cannot read the text file {file}: {error.strerror or error}") from error


def load_corpus(file: Path | None = None) -> Corpus:
    """The corpus of a user's text `file`, or of this Python's own documentation.

    Raises:
        TextError: the file cannot be read, or it has too little text for two splits.
    """
    if file is None:
        documents, description = python_documents(), f"documentation of Python {sys.version.split()[0]} (PSF licence)"
    else:
        documents, description = file_documents(file), f"{file.name}"
    held_out = tuple(document for document in documents if is_held_out(document.name))
    training = tuple(document for document in documents if not is_held_out(document.name))
    if not held_out or not training:
        raise TextError(
            f"{description}: {len(documents)} documents are too few to train on some and hold out others; a text file is "
            "cut into documents of about 4,000 characters, at blank lines or at the ends of lines: give at least 100,000"
        )
    return Corpus(description, training, held_out)


def is_held_out(name: str) -> bool:
    """Whether the document called `name` is in the held-out split. A function of the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % HELD_OUT_ONE_IN == 0


def python_documents() -> list[Document]:
    """The language reference (`pydoc_data.topics`) and the docstrings of every standard library module, by name."""
    from pydoc_data.topics import topics

    documents = [Document(topic_document(name), text) for name, text in topics.items()]
    for path, tree in standard_library():
        documents.append(Document(module_document(path), "\n\n".join(_docstrings(tree))))
    return sorted((d for d in documents if len(d.text) >= _MIN_DOCUMENT_CHARS), key=lambda document: document.name)


def standard_library(include: Callable[[Path], bool] = lambda path: True) -> Iterator[tuple[Path, ast.Module]]:
    """Modules of the standard library that pass the filter `include`: path below the library's root, and syntax tree."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(path.parts) and include(path):
            try:
                yield path, ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):  # a few files of the standard library have unusual encodings
                continue


def module_document(path: Path) -> str:
    """Name of the document with the docstrings of the standard library's module at `path`; see `is_held_out`."""
    return f"module:{path.as_posix()}"


def topic_document(name: str) -> str:
    """Name of the document with the language reference's topic `name`."""
    return f"topic:{name}"


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of at least 80 characters in the order of `ast.walk`."""
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        nodes.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:
                yield text


def file_documents(file: Path, characters: int = 4000) -> list[Document]:
    """Split a text file between paragraphs into documents of about `characters`, named by content so that edits stay local.

    Blank lines end a paragraph; a paragraph longer than a document is split between its lines.

    Raises:
        TextError: the file cannot be read, is not UTF-8, or has no text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TextError(f"cannot read the text file {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"cannot read the text file {file}: it is not UTF-8 ({error})") from error
    if not text.strip():
        raise TextError(f"the text file {file} has no text in it")
    documents, buffer = [], ""
    for gap, paragraph in _paragraphs(text, characters):
        buffer = f"{buffer}{gap}{paragraph}" if buffer else paragraph
        if len(buffer) >= characters:
            documents.append(_document(buffer))
            buffer = ""
    return [*documents, _document(buffer)] if buffer else documents


def _paragraphs(text: str, max_chars: int) -> Iterator[tuple[str, str]]:
    """Paragraphs (blocks between blank lines, or the lines of longer blocks), each with the separator before it."""
    for block in re.split(r"\n(?:[^\S\n]*\n)+", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if len(block) <= max_chars:
            lines = ["\n".join(lines)] if lines else []
        yield from zip(("\n\n", *["\n"] * (len(lines) - 1)), lines, strict=False)


def _document(text: str) -> Document:
    return Document(hashlib.sha256(text.encode()).hexdigest(), text)


def training_sequences(corpus: Corpus, encode: Encode, length: int, end: int, seed: int) -> list[list[int]]:
    """Training sequences of `length` tokens: documents shuffled by `seed`, joined by the token `end` and cut.

    Raises:
        TextError: the text is shorter than one sequence.
    """
    documents = list(corpus.training)
    random.Random(seed).shuffle(documents)
    sequences = list(_pack((document.text for document in documents), encode, length, end))
    if not sequences:
        raise TextError(
            f"the calibration set is empty: {corpus.description} has fewer than {length} tokens to train on"
        )
    return sequences


def held_out_sequences(
    corpus: Corpus, encode: Encode, decode: Callable[[Sequence[int]], str], length: int, count: int
) -> list[list[int]]:
    """Up to `count` held-out sequences of `length` tokens that share no 13-word n-gram with the training text.

    At most two sequences per document, so that no document dominates; no sequence spans two documents.

    Raises:
        TextError: no sequence is left after removing those that overlap.
    """
    training_ngrams = all_ngrams(document.text for document in corpus.training)
    sequences: list[list[int]] = []
    documents = sorted(corpus.held_out, key=lambda document: hashlib.sha256(document.name.encode()).digest())
    for document in documents:
        clean_sequences = (
            s for s in _cut(encode(document.text), length) if training_ngrams.isdisjoint(word_ngrams(decode(s)))
        )
        sequences += [sequence for sequence, _ in zip(clean_sequences, range(2), strict=False)]
        if len(sequences) >= count:
            return sequences[:count]
    if not sequences:
        raise TextError(
            f"no held-out text: {corpus.description} has no document of {length} tokens "
            f"that shares no {NGRAM_WORDS} words in a row with the training text"
        )
    return sequences


def normalized_words(text: str) -> list[str]:
    """Lower-case words of `text` without punctuation."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def word_ngrams(text: str, words: int = NGRAM_WORDS) -> Iterator[int]:
    """Hashes of every run of `words` words of `text`, ignoring case and punctuation."""
    tokens = normalized_words(text)
    for i in range(len(tokens) - words + 1):
        yield hash(tuple(tokens[i : i + words]))


def all_ngrams(texts: Iterable[str]) -> frozenset[int]:
    """Every 13-word n-gram of `texts`."""
    return frozenset(gram for text in texts for gram in word_ngrams(text))


def shared_ngrams(training: Set[int], held_out: Iterable[str]) -> int:
    """Number of distinct 13-word n-grams of the `held_out` texts that are in `training`; 0 means disjoint."""
    return len(all_ngrams(held_out) & training)


def sequences_digest(sequences: Iterable[Sequence[int]]) -> str:
    """sha256 of token ids, sequence by sequence."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(" ".join(map(str, sequence)).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _documents_digest(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()


def _pack(texts: Iterable[str], encode: Encode, length: int, end: int) -> Iterator[list[int]]:
    buffer: list[int] = []
    for text in texts:
        buffer += [*encode(text), end]
        yield from _cut(buffer, length)
        buffer = buffer[len(buffer) - len(buffer) % length :]


def _cut(tokens: list[int], length: int) -> Iterator[list[int]]:
    for start in range(0, len(tokens) - length + 1, length):
        yield tokens[start : start + length]
