"""Questions that nobody here wrote, with the texts that answer them: `python -m benchmarks.retrieval.faq_corpus` fetches them.

They are FAQ documents of Debian and PyPI packages, downloaded into the cache folder and never stored in the repository. Sources are
split by a hash of their family's name, and translations are one family, so that nobody chooses what stays untouched.
"""

import argparse
import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.progress import track

from benchmarks.lib.processes import command
from benchmarks.retrieval.faq_parsing import QuestionAnswer, parse
from benchmarks.retrieval.packages import NoPackage, unpacked

PARTS = ("calibration", "development", "untouched")
PER_SOURCE = 24  # questions asked of a source, so that no large one dominates
SPECIFIC = 0.2  # a question needs a word that at most this share of the language's sources use: "Where can I get help?" has none
SEED = 20


@dataclass(slots=True, frozen=True)
class Source:
    """An FAQ in one language: a collection of its own."""

    family: str  # the FAQ; its translations share it
    language: str
    package: str  # Debian's name, or PyPI's with the prefix `pypi:`
    files: str  # pattern below the package's root
    title: str

    @property
    def name(self) -> str:
        """The collection's name."""
        return f"{self.family}-{self.language}"

    @property
    def part(self) -> str:
        """The part of the split."""
        return part_of(self.family)


@dataclass(slots=True, frozen=True)
class Question:
    """A question to one collection."""

    text: str
    collection: str  # name of the source that is searched
    language: str
    gold: int | None  # index of the answer among the source's; None: the collection has none
    kind: str  # "answered", "other source", "left out"
    left_out: int | None = None  # index of the answer that the search must not find


def part_of(family: str) -> str:
    """The part that a family of sources belongs to."""
    return PARTS[hashlib.sha256(family.encode()).digest()[0] % len(PARTS)]


def sources(part: str | None = None) -> list[Source]:
    """All sources, or those of one part."""
    rows = (Source(*line.split(maxsplit=4)) for line in _TABLE.strip().splitlines())
    return [source for source in rows if part in (None, source.part)]


@lru_cache
def items(source: Source) -> Sequence[QuestionAnswer]:
    """The source's questions and answers, in order. Raises `NoPackage`."""
    root = unpacked(source.package)
    if not source.package.startswith("pypi:"):
        root /= "usr/share"
    files = sorted(file for file in root.glob(source.files) if file.is_file())
    if not files:
        raise NoPackage(f"the package {source.package} has no {source.files} any more")
    return parse(files)


def questions(part: str) -> list[Question]:
    """The questions of a part, the same at every call.

    For each source: some of its specific questions, as many of other sources in the same language, and its own ones again
    with the answer left out of the search (another answer may cover these by chance). Raises `NoPackage`.
    """
    return [question for source in sources(part) for question in _asked(source)]


def _asked(source: Source) -> Iterator[Question]:
    draw = random.Random(f"{SEED} {source.name}")
    own, specific = items(source), _specific(source)
    picked = sorted(draw.sample(specific, min(PER_SOURCE, len(specific))))
    others: list[str] = []
    for part in reversed(PARTS[: PARTS.index(source.part) + 1]):  # an earlier part where this one has no other source
        others = others or [
            items(other)[i].question
            for other in sources(part)
            if other.family != source.family and other.language == source.language and not _related(source, other)
            for i in draw.sample(_specific(other), min(PER_SOURCE, len(_specific(other))))
        ]
    for i in picked:
        yield Question(own[i].question, source.name, source.language, i, "answered")
        yield Question(own[i].question, source.name, source.language, None, "left out", i)
    for text in draw.sample(others, min(len(picked), len(others))):
        yield Question(text, source.name, source.language, None, "other source")


def _specific(source: Source) -> list[int]:
    """Indices of the source's questions that name their subject. The rule is the same for answerable and other questions."""
    frequencies = _source_frequencies(source.language)
    limit = SPECIFIC * frequencies[""]
    return [
        i
        for i, item in enumerate(items(source))
        if any(frequencies[word] <= max(1, limit) for word in _words(item.question))
    ]


@lru_cache
def _source_frequencies(language: str) -> Counter[str]:
    """Number of sources that use each word; under the empty word, the number of all."""
    frequencies: Counter[str] = Counter()
    for source in sources():
        if source.language == language:
            text = "\n".join(f"{item.question}\n{item.answer}" for item in items(source))
            frequencies.update({"", *_words(text)})
    return frequencies


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _related(one: Source, other: Source) -> bool:
    """Whether two sources are about one subject, so that one may answer the other's questions."""
    return any({one.family, other.family} <= group for group in _RELATED)


_RELATED = ({"sylpheed", "bogofilter", "fetchmail", "procmail", "leafnode", "slrn", "inn2"}, {"zsh", "expect", "xterm"})
#: Family, language, package, files (in Debian's packages below usr/share), title.
_TABLE = """
auctex en auctex doc/auctex/FAQ.gz AUCTeX FAQ
bogofilter en bogofilter-common doc/bogofilter-common/bogofilter-faq.html Bogofilter FAQ
bogofilter fr bogofilter-common doc/bogofilter-common/bogofilter-faq-fr.html FAQ de Bogofilter
borg en borgbackup-doc doc/borgbackup/html/faq.html Borg FAQ
celery en python-celery-doc doc/python-celery-doc/html/faq.html Celery FAQ
chrony en chrony doc/chrony/FAQ.gz chrony FAQ
construction en pypi:zaragoza-construction-faq==1.2.1 zaragoza_construction_faq/data/faq-en.json Swedish construction FAQ
construction sv pypi:zaragoza-construction-faq==1.2.1 zaragoza_construction_faq/data/faq.json Frågor om byggande
cryptsetup en cryptsetup doc/cryptsetup/FAQ.md.gz cryptsetup FAQ
curl en libcurl4-doc doc/libcurl4/FAQ.gz curl FAQ
cvs en cvs doc/cvs/FAQ.gz CVS FAQ
debian de debian-faq-de doc/debian/FAQ/de/*.html Debian GNU/Linux FAQ
debian en debian-faq doc/debian/FAQ/*.en.html Debian GNU/Linux FAQ
debian fr debian-faq-fr doc/debian/FAQ/fr/*.html FAQ Debian GNU/Linux
django en python-django-doc doc/python-django-doc/html/faq/*.html Django FAQ
dnsmasq en dnsmasq-base doc/dnsmasq-base/FAQ.gz dnsmasq FAQ
docutils en docutils-doc doc/docutils-doc/FAQ.html Docutils FAQ
expect en expect doc/expect/FAQ.gz Expect FAQ
fetchmail en fetchmail doc/fetchmail/fetchmail-FAQ.html Fetchmail FAQ
fxfunds en pypi:fxfunds-platform-faq==1.0.0 fxfunds_platform_faq/faq.json FXFunds platform FAQ
git en git-doc doc/git-doc/gitfaq.html Git FAQ
hercules en hercules doc/hercules/hercfaq.html Hercules FAQ
htdig en htdig-doc doc/htdig-doc/html/FAQ.html ht://Dig FAQ
inn2 en inn2 doc/inn2/FAQ.gz INN FAQ
irssi en irssi doc/irssi/faq.html Irssi FAQ
john en john doc/john/FAQ.gz John the Ripper FAQ
leafnode en leafnode doc/leafnode/FAQ.txt.gz Leafnode FAQ
libstdc++ en libstdc++-12-doc doc/gcc-12-base/libstdc++/faq.html libstdc++ FAQ
lxml en python-lxml-doc doc/python-lxml/html/FAQ.html lxml FAQ
mdadm en mdadm doc/mdadm/FAQ.gz mdadm FAQ
mplayer de mplayer-doc doc/mplayer/HTML/de/faq.html MPlayer: Häufig gestellte Fragen
mplayer en mplayer-doc doc/mplayer/HTML/en/faq.html MPlayer FAQ
mplayer es mplayer-doc doc/mplayer/HTML/es/faq.html MPlayer: Preguntas de uso frecuente
mplayer fr mplayer-doc doc/mplayer/HTML/fr/faq.html MPlayer: Foire aux questions
nano en nano doc/nano/faq.html nano FAQ
perl en perl-doc perl/*/pod/perlfaq[1-9].pod Perl FAQ
phpmyadmin en phpmyadmin doc/phpmyadmin/html/faq.html phpMyAdmin FAQ
privoxy en privoxy doc/privoxy/faq/*.html Privoxy FAQ
procmail en procmail doc/procmail/FAQ procmail FAQ
psycopg2 en python-psycopg2-doc doc/python-psycopg2-doc/html/faq.html Psycopg FAQ
pytables en python-tables-doc doc/python-tables-doc/html/FAQ.html PyTables FAQ
python en python3.11-doc doc/python3.11/html/faq/*.html Python FAQ
r en r-doc-html doc/r-doc-html/manual/R-FAQ.html R FAQ
rdiff-backup en rdiff-backup doc/rdiff-backup/FAQ.adoc.gz rdiff-backup FAQ
reprepro en reprepro doc/reprepro/FAQ.gz reprepro FAQ
rkhunter en rkhunter doc/rkhunter/FAQ.gz Rootkit Hunter FAQ
scrapy en python-scrapy-doc doc/python-scrapy-doc/html/faq.html Scrapy FAQ
slrn en slrn doc/slrn/FAQ.gz slrn FAQ
sqlalchemy en python-sqlalchemy-doc doc/python-sqlalchemy-doc/html/faq/*.html SQLAlchemy FAQ
sqlite en sqlite3-doc doc/sqlite3/faq.html SQLite FAQ
sylpheed de sylpheed-doc doc/sylpheed-doc/FAQ/de/*.html Sylpheed FAQ
sylpheed en sylpheed-doc doc/sylpheed-doc/FAQ/en/*.html Sylpheed FAQ
sylpheed es sylpheed-doc doc/sylpheed-doc/FAQ/es/*.html FAQ de Sylpheed
sylpheed fr sylpheed-doc doc/sylpheed-doc/FAQ/fr/*.html FAQ de Sylpheed
xboard en xboard doc/xboard/FAQ.html XBoard FAQ
xterm en xterm doc/xterm/xterm.faq.html xterm FAQ
zlib en zlib1g-dev doc/zlib1g-dev/FAQ.gz zlib FAQ
zsh en zsh-doc doc/zsh-common/html/FAQ0*.html Zsh FAQ
"""


def main() -> int:
    """The command; returns its exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with command((NoPackage, OSError), "what was fetched stays in the cache; run it again for the rest"):
        for source in track(sources(), description="FAQ documents"):
            items(source)
        for part in PARTS:
            asked = questions(part)
            for language in sorted({question.language for question in asked}):
                kinds = [question.kind for question in asked if question.language == language]
                counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
                print(f"{part}, {language}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
