"""Corpora of real documents with questions whose answer is known, for `benchmarks.retrieval.search`; vectors are cached.

Pages of Python's documentation with the titles of their sections and the entries of its index, and terms of FOLDOC with
their definitions. Random choices are seeded.
"""

import copy
import hashlib
import random
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lxml.html
import numpy as np

from benchmarks.retrieval.labelled_texts import foldoc, question_about
from deployments.embedder import embedder_folder
from deployments.state import cache_folder
from serve.config.retrieval import RetrievalConfig
from serve.retrieval.embedder import Embedder, Vectors
from serve.retrieval.verify.faithfulness import sentences

PARTS = ("library", "reference", "tutorial", "howto", "faq")  # of Python's documentation
PAGES, TERMS = 110, 7000  # together about 10,000 chunks
PER_SET = 300  # questions
_OPENING = re.compile(
    r"(?:\d+\. |<[^>]*> |/[^/]*/ |\[[^]]*\] |\([^()]*\) )+"
)  # of a definition: number, field, sound, source, initials
_REST = 150  # minimum characters of a definition without its first sentence


@dataclass(slots=True, frozen=True)
class Document:
    """A document to index."""

    name: str
    data: bytes
    kind: str
    title: str | None = None


@dataclass(slots=True, frozen=True)
class Question:
    """A question, and where its answer is."""

    subset: str
    text: str
    source: str  # name of the document
    section: frozenset[tuple[str, ...]] = frozenset()  # `triples` of its words; empty: the whole document

    def answered_by(self, source: str, content: str) -> bool:
        """Whether a passage is from the answer's section: half of either one's word triples are in the other."""
        if source != self.source or not self.section:
            return source == self.source
        words = triples(content)
        return len(words & self.section) >= 0.5 * min(len(words), len(self.section)) > 0


def triples(text: str) -> frozenset[tuple[str, ...]]:
    """All sequences of three words, without punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def python(folder: Path, draw: random.Random) -> tuple[list[Document], list[Question]]:
    """Python's documentation: pages; questions from section titles, which are removed from the page, and from index entries."""
    html = folder / "python3.11-doc/usr/share/doc/python3.11/html"
    paths = sorted(path for part in PARTS for path in (html / part).glob("*.html") if path.stem != "index")
    paths = sorted(draw.sample(paths, PAGES))
    trees = {str(path.relative_to(html)): lxml.html.document_fromstring(path.read_bytes()) for path in paths}
    headings = [
        (name, heading)
        for name, tree in trees.items()
        for heading in tree.xpath("//section/section/*[self::h2 or self::h3]")
    ]
    titles = [_shown(heading) for _, heading in headings]
    clear = [
        one
        for one, title in zip(headings, titles, strict=True)
        if titles.count(title) == 1 and len(re.findall(r"\b[A-Za-z]{3,}\b", title)) > 1
    ]
    index_entries = []
    for number, (name, heading) in enumerate(draw.sample(clear, PER_SET), 1):
        index_entries.append(Question("section titles", _shown(heading), name, _section(heading.getparent())))
        for child in heading.getchildren():
            child.drop_tree()
        heading.text = f"Section {number}"
    documents = [
        Document(name, lxml.html.tostring(tree, encoding="utf-8", doctype="<!DOCTYPE html>"), "html")
        for name, tree in trees.items()
    ]
    return documents, index_entries + draw.sample(sorted(_entries(html, trees), key=lambda one: one.text), PER_SET)


def _entries(html: Path, trees: dict[str, lxml.html.HtmlElement]) -> Iterator[Question]:
    """Index entries that point to one place, with its section, or its definition where it has one."""
    index = lxml.html.document_fromstring((html / "genindex-all.html").read_bytes())
    links: dict[str, list[str]] = {}
    for link in index.xpath("//table[contains(@class, 'genindextable')]/tr/td/ul/li/a[@href]"):
        links.setdefault(_shown(link), []).append(link.get("href"))
    for text, places in links.items():
        name, _, anchor = places[0].partition("#")
        if len(places) > 1 or name not in trees or len(text) < 4 or text.startswith("["):
            continue
        at = trees[name].xpath("//*[@id=$id]/ancestor-or-self::*[self::section or self::dl][1]", id=anchor)
        if at and (section := _section(at[0])):
            yield Question("index entries", text, name, section)


def _section(element: lxml.html.HtmlElement) -> frozenset[tuple[str, ...]]:
    """Text of a section without its heading and subsections, or of a definition without nested ones."""
    own = copy.deepcopy(element)
    inner = "./*[self::h1 or self::h2 or self::h3 or self::h4] | ./section"
    for part in own.xpath("./dd//dl[dt[@id]]" if own.tag == "dl" else inner):
        if part.getparent() is not None:
            part.drop_tree()
    return triples(own.text_content())


def _shown(element: lxml.html.HtmlElement) -> str:
    return " ".join(element.text_content().replace("¶", " ").split())


def terms(folder: Path, draw: random.Random) -> tuple[list[Document], list[Question]]:
    """FOLDOC: entries up to 700 characters; questions from terms in many wordings, and from first sentences without the term.

    One half of the first sentences are removed from their entries, so that only the remaining words can match.
    """
    entries = {entry.term.lower(): entry for entry in foldoc(folder, draw)}
    shuffled = draw.sample(sorted(entries.values(), key=lambda one: one.term), min(TERMS, len(entries)))
    documents, found = [], []
    remaining = {"definitions": PER_SET, "definitions, not in the text": PER_SET, "terms": PER_SET}
    for entry in shuffled:
        name, text = f"foldoc/{entry.term}", entry.passage
        head, _, body = text.partition("\n\n")
        start, end = next(iter(sentences(body)), (0, 0))
        first = _OPENING.sub("", body[start:end])
        subset = next((one for one, left in remaining.items() if left), None)
        if subset is not None and subset != "terms":
            if not 60 <= len(first) <= 300 or len(body) - end < _REST:
                subset = None
            else:
                blank = re.sub(rf"\b{re.escape(entry.term)}\b", "it", first, flags=re.I)
                found.append(Question(subset, blank, name))
                if subset != "definitions":
                    text = f"{head}\n\n{body[end:].strip()}"
        elif subset is not None:
            found.append(Question(subset, question_about(entry.term, draw), name))
        if subset is not None:
            remaining[subset] -= 1
        documents.append(Document(name, text.encode(), "text", entry.term))
    return documents, found


def embedder_at(folder: Path | None) -> Path:
    """`folder`, or the platform's embedding model, built if it is missing. Raises `BuildError`."""
    cache = cache_folder()
    return folder or embedder_folder(RetrievalConfig().embedder, cache, cache / "embedder.log")[0]


class Cached:
    """An embedder with a cache file of vectors."""

    def __init__(self, embedder: Embedder, model: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._embedder, self._model = embedder, model.encode()
        self._file = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._file.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        self.made = 0  # number of vectors that were not in the file

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`, (texts, dimension) in float32."""
        keys = [hashlib.sha256(self._model + text.encode()).digest() for text in texts]
        known = {
            key: self._file.execute("SELECT vector FROM vectors WHERE text = ?", (key,)).fetchone() for key in keys
        }
        new = [i for i, key in enumerate(keys) if known[key] is None]
        if new:
            vectors = self._embedder.embed([texts[i] for i in new])
            rows = [(keys[i], vector.tobytes()) for i, vector in zip(new, vectors, strict=True)]
            self._file.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
            known |= {key: (vector,) for key, vector in rows}
            self.made += len(new)
        return np.stack([np.frombuffer(known[key][0], np.float32) for key in keys])
