"""Questions about rows of real tables and data sheets, made mechanically; with near misses: entities whose row is left out.

The tables are those of Debian packages (ISO codes with their translations, network services, microcontrollers, …), fetched into the
cache folder and never stored in the repository. They are split like the FAQs, by a hash of the table's name.
"""

import gettext
import html
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.retrieval.faq_corpus import SEED, part_of
from benchmarks.retrieval.packages import unpacked

ROWS, PER_TABLE = 90, 20  # rows of a document; questions of each kind about it

Rows = Iterator[tuple[str, ...]]


@dataclass(slots=True, frozen=True)
class Table:
    """A table in one language. The first column names a row's entity."""

    family: str
    language: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # drawn ones
    absent: tuple[tuple[str, ...], ...]  # drawn ones that the document leaves out
    sheets: bool  # a section for each entity instead of a row

    @property
    def name(self) -> str:
        """The collection's name."""
        return f"{self.family}-{self.language}"

    @property
    def document(self) -> str:
        """The document, in HTML."""
        escaped = [[html.escape(cell) for cell in row] for row in (self.columns, *self.rows)]
        head, body = escaped[0], escaped[1:]
        if self.sheets:
            lists = (
                f"<h2>{row[0]}</h2><ul>"
                + "".join(f"<li>{name}: {cell}</li>" for name, cell in zip(head[1:], row[1:], strict=True))
                + "</ul>"
                for row in body
            )
            return f"<h1>{html.escape(self.title)}</h1>{''.join(lists)}"
        lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
        titles = "".join(f"<th>{cell}</th>" for cell in head)
        return f"<h1>{html.escape(self.title)}</h1><table><tr>{titles}</tr>{lines}</table>"


@dataclass(slots=True, frozen=True)
class RowQuestion:
    """A question about one cell of a table."""

    text: str
    collection: str
    language: str
    entity: str
    value: str
    answerable: bool


_FORMS = {
    "en": "What is the {column} of {entity}?",
    "de": "Wie lautet {column} von {entity}?",
    "fr": "Quel est {column} de {entity} ?",
    "es": "¿Cuál es {column} de {entity}?",
}


def tables(part: str) -> list[Table]:
    """The tables of a part. Raises `NoPackage`."""
    return [_drawn(*spec) for spec in _SPECS if part_of(spec[0]) == part]


def row_questions(table: Table) -> list[RowQuestion]:
    """Questions about rows of the table, and as many about entities that it lacks."""
    draw = random.Random(f"{SEED} {table.name} questions")
    asked = [(row, True) for row in draw.sample(table.rows, min(PER_TABLE, len(table.rows)))]
    asked += [(row, False) for row in table.absent]
    return [_question(table, row, answerable, draw) for row, answerable in asked]


def _question(table: Table, row: tuple[str, ...], answerable: bool, draw: random.Random) -> RowQuestion:
    column = draw.choice([i for i in range(1, len(row)) if row[i]])
    text = _FORMS[table.language].format(column=table.columns[column], entity=row[0])
    return RowQuestion(text, table.name, table.language, row[0], row[column], answerable)


@lru_cache
def _drawn(
    family: str, language: str, title: str, columns: tuple[str, ...], read: Callable[[str], Rows], sheets: bool = False
) -> Table:
    distinct = {row[0]: row for row in read(language) if row[0] and all(row)}
    draw = random.Random(f"{SEED} {family}")  # not of the language: translations have the same rows
    picked = draw.sample(sorted(range(len(distinct))), min(ROWS + PER_TABLE, len(distinct)))
    every = list(distinct.values())
    rows = sorted(every[i] for i in picked[PER_TABLE:])
    return Table(family, language, title, columns, tuple(rows), tuple(every[i] for i in picked[:PER_TABLE]), sheets)


def _iso(standard: str, *fields: str) -> Callable[[str], Rows]:
    """Rows of an ISO standard, their names translated."""

    def read(language: str) -> Rows:
        share = unpacked("iso-codes") / "usr/share"
        translated = gettext.translation(f"iso_{standard}", share / "locale", [language], fallback=True).gettext
        (entries,) = json.loads((share / f"iso-codes/json/iso_{standard}.json").read_text()).values()
        for entry in entries:
            yield (translated(entry["name"]).split(";")[0], *(entry.get(field, "") for field in fields))

    return read


def _services(_: str) -> Rows:
    for line in (unpacked("netbase") / "etc/services").read_text().splitlines():
        if match := re.match(r"(\S+)\s+(\d+)/(tcp|udp)\b[^#]*(?:#\s*(.*))?", line):
            yield match[1], match[2], match[3]


def _protocols(_: str) -> Rows:
    for line in (unpacked("netbase") / "etc/protocols").read_text().splitlines():
        if match := re.match(r"\S+\s+(\d+)\s+(\S+)\s+#\s*(.+)", line):
            yield match[3], match[1], match[2]


def _media_types(_: str) -> Rows:
    for line in (unpacked("media-types") / "etc/mime.types").read_text().splitlines():
        if match := re.match(r"(\w\S+)\s+(\w.*)", line):
            yield match[1], match[2]


def _time_zones(_: str) -> Rows:
    for line in (unpacked("tzdata") / "usr/share/zoneinfo/zone.tab").read_text().splitlines():
        if not line.startswith("#"):
            country, coordinates, zone = line.split("\t")[:3]
            yield zone.rpartition("/")[2].replace("_", " "), coordinates, country, zone


def _vendors(_: str) -> Rows:
    for line in (unpacked("hwdata") / "usr/share/hwdata/pnp.ids").read_text().splitlines():
        code, _, name = line.partition("\t")
        yield name.strip(), code


def _microcontrollers(_: str) -> Rows:
    """Parts of avrdude's configuration, with what they inherit from the part that they name as parent."""
    text = (unpacked("avrdude") / "etc/avrdude.conf").read_text()
    parts: dict[str, Mapping[str, str]] = {}
    for block in re.split(r"^part\b", text, flags=re.M)[1:]:
        parent = re.match(r'\s+parent\s+"([^"]+)"', block)
        fields = dict(
            re.findall(r'^\s+(desc|id|signature|n_interrupts|chip_erase_delay)\s*=\s*"?([^";]+)', block, re.M)
        )
        flash = re.search(r'memory "flash".*?\bsize\s*=\s*(\w+)', block, re.S)
        fields |= {"flash": str(int(flash[1], 0))} if flash else {}
        fields = {**parts.get(parent[1] if parent else "", {}), **fields}
        parts[fields.get("id", "")] = fields
        if re.match(r"AT|attiny", fields.get("desc", "")):
            names = ("desc", "signature", "flash", "n_interrupts", "chip_erase_delay")
            yield tuple(fields.get(name, "").strip() for name in names)


_COUNTRIES = _iso("3166-1", "alpha_2", "alpha_3", "numeric")
_CURRENCIES = _iso("4217", "alpha_3", "numeric")
_LANGUAGES = _iso("639-2", "alpha_3")
#: Family, language, title, columns, rows, and whether it is a set of data sheets.
_SPECS: Sequence[tuple[object, ...]] = (
    ("countries", "en", "Codes of countries", ("country", "two-letter code", "three-letter code", "numeric code"), _COUNTRIES),
    ("countries", "de", "Ländercodes", ("Land", "der zweistellige Code", "der dreistellige Code", "der numerische Code"), _COUNTRIES),
    ("countries", "fr", "Codes des pays", ("pays", "le code à deux lettres", "le code à trois lettres", "le code numérique"), _COUNTRIES),
    ("countries", "es", "Códigos de países", ("país", "el código de dos letras", "el código de tres letras", "el código numérico"), _COUNTRIES),
    ("currencies", "en", "Codes of currencies", ("currency", "currency code", "currency number"), _CURRENCIES),
    ("currencies", "de", "Währungscodes", ("Währung", "der Währungscode", "die Währungsnummer"), _CURRENCIES),
    ("currencies", "fr", "Codes des monnaies", ("monnaie", "le code de monnaie", "le numéro de monnaie"), _CURRENCIES),
    ("currencies", "es", "Códigos de monedas", ("moneda", "el código de moneda", "el número de moneda"), _CURRENCIES),
    ("languages", "en", "Codes of languages", ("language", "language code"), _LANGUAGES),
    ("languages", "de", "Sprachcodes", ("Sprache", "der Sprachcode"), _LANGUAGES),
    ("languages", "fr", "Codes des langues", ("langue", "le code de langue"), _LANGUAGES),
    ("languages", "es", "Códigos de idiomas", ("idioma", "el código de idioma"), _LANGUAGES),
    ("scripts", "en", "Codes of scripts", ("script", "code", "number"), _iso("15924", "alpha_4", "numeric")),
    ("services", "en", "Network services", ("service", "port number", "transport protocol"), _services),
    ("protocols", "en", "Internet protocols", ("protocol", "protocol number", "keyword"), _protocols),
    ("media-types", "en", "Media types", ("media type", "file extension"), _media_types),
    ("time-zones", "en", "Cities of time zones", ("city", "position", "country code", "time zone"), _time_zones),
    ("vendors", "en", "Vendors of displays", ("vendor", "PNP identifier"), _vendors),
    ("microcontrollers", "en", "AVR microcontrollers", ("part", "device signature", "flash size in bytes", "number of interrupts", "chip erase delay in µs"), _microcontrollers, True),
)  # fmt: skip
