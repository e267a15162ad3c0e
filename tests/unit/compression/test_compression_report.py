"""The report: its comparisons, the marked Pareto front, and no executable content from a card."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import make_card, make_profile, make_quality, write_variant
from compression.report.page import Axis, Group, ReportError, load_cards, markdown, quality_ci95, write_report
from serve.card import Card, Step


def variant(cache: Path, name: str, quality: float, tpot_ms: float, megabytes: int, **changes: object) -> Card:
    changes = {"profile": make_profile(tpot=[(1, tpot_ms)], price_usd_per_hour=0.0), **changes}
    card = make_card(name, quality=quality, bytes_on_disk=megabytes * 1_000_000, **changes)
    write_variant(cache / "m" / f"{name}-{tpot_ms}", card)
    return card


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Full, a good int8, and a variant that int8 dominates."""
    variant(tmp_path, "full", 1.0, 40, 270)
    variant(tmp_path, "int8", 0.95, 20, 160)
    variant(tmp_path, "worse", 0.9, 30, 200)
    return tmp_path


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if "|" in line]
    return {row[0]: row for row in cells}


@pytest.mark.parametrize("place", ["", "m", "m/int8-20"])
def test_cards_are_found_in_caches_models_and_variants(cache: Path, place: str) -> None:
    found = load_cards([cache / place])
    names = {row.label for group in found.groups for row in group.rows}
    assert names == ({"int8"} if place.startswith("m/") else {"full", "int8", "worse"})
    assert found.left_out == []


def test_the_table_marks_the_front_and_says_by_what_the_others_are_dominated(cache: Path) -> None:
    table = rows(markdown(load_cards([cache])))
    assert {name: table[name][-1] for name in ("full", "int8", "worse")} == {
        "full": "yes", "int8": "yes", "worse": "no: int8",
    }  # fmt: skip
    assert list(table)[2:] == ["full", "int8", "worse"], "the best first"
    assert table["int8"][2:4] == ["160", "0.950"]
    assert table["int8"][-4] == "50.0"


def test_what_was_measured_elsewhere_is_not_compared(cache: Path) -> None:
    elsewhere = make_profile(tpot=[(1, 1)]).model_copy(update={"hardware": "1 x H100"})
    variant(cache, "gpu", 1.0, 1, 10, profile=elsewhere)
    found = load_cards([cache])
    assert [(group.hardware, len(group.rows)) for group in found.groups] == [("2 cores", 3), ("1 x H100", 1)]
    assert rows(markdown(found))["int8"][-1] == "yes"


def test_two_builds_of_one_variant_are_told_apart(cache: Path) -> None:
    variant(cache, "int8", 0.96, 21, 161)
    (group,) = load_cards([cache, cache]).groups
    assert len(group.rows) == len({row.label for row in group.rows}) == 4


def test_only_what_all_variants_have_is_compared(cache: Path, tmp_path: Path) -> None:
    """One without a price would be the cheapest, one without a measured peak the slowest."""

    def axes() -> list[str]:
        (group,) = load_cards([cache]).groups
        return [axis.name for axis in group.axes]

    assert axes() == ["speed", "throughput", "size"]
    priced = make_profile()
    write_variant(tmp_path / "priced" / "full", make_card(profile=priced))
    assert [axis.name for axis in load_cards([tmp_path / "priced"]).groups[0].axes][-1] == "cost"
    variant(cache, "old", 0.5, 50, 300, profile=priced.model_copy(update={"peak": None}))
    assert axes() == ["speed", "size"]
    assert rows(markdown(load_cards([cache])))["old"][-3] == ""


def test_what_cannot_be_shown_is_named_and_leaves_the_rest(cache: Path) -> None:
    write_variant(cache / "m" / "new", make_card("new", quality=None))
    (cache / "m" / "broken").mkdir()
    (cache / "m" / "broken" / "card.json").write_text("{")
    (cache / "m" / "half.part").mkdir()
    (cache / "m" / "half.part" / "card.json").write_text("{")
    found = load_cards([cache])
    assert len(found.groups[0].rows) == 3
    assert len(found.left_out) == 2
    assert any("'new' in" in line and "not measured" in line for line in found.left_out)
    assert any("broken" in line and "not a valid card" in line for line in found.left_out)


def test_nothing_to_show_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=f"no card.json in {tmp_path}"):
        load_cards([tmp_path])
    write_variant(tmp_path / "new", make_card("new", quality=None))
    with pytest.raises(ReportError, match="no measured card: 'new' in"):
        load_cards([tmp_path])


class Tags(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>|`$\\frac'


def test_the_page_needs_no_network_and_runs_nothing_from_a_card(cache: Path, tmp_path: Path) -> None:
    quality = make_quality(0.7).model_copy(update={"derivation": EVIL, "set": EVIL})
    profile = make_profile().model_copy(update={"engine": EVIL, "hardware": EVIL})
    step = Step(technique=EVIL, parameters={"scheme": EVIL}, tool=EVIL)
    card = make_card(EVIL, model=EVIL, profile=profile, steps=(step,), reproduce=EVIL)
    write_variant(cache / "m" / "evil", card.model_copy(update={"quality": quality}))
    (cache / "<b>bad").mkdir()
    (cache / "<b>bad" / "card.json").write_text("{")

    def plot(group: Group, axis: Axis, file: Path) -> None:
        file.write_bytes(b"\x89PNG")

    files = write_report(load_cards([cache]), tmp_path / "out", plot)
    page, table = files[0].read_text(), files[1].read_text()
    tags = Tags()
    tags.feed(page)
    assert EVIL in tags.text, "shown as it is"
    assert not {"script", "link", "iframe", "b"} & {tag for tag, _ in tags.found}
    allowed = {"lang", "charset", "name", "content", "class", "alt", "src"}
    assert {name for _, attributes in tags.found for name in attributes} <= allowed
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in tags.found if tag == "img")
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in table and "<img" not in table
    widths = {line.count("|") - line.count("\\|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 2, "no cell ends early: one width for each group"
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_plots_are_images(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from compression.report.plots import plot

    quality = make_quality(0.7).model_copy(update={"derivation": EVIL})
    write_variant(tmp_path / "priced" / "evil", make_card(EVIL).model_copy(update={"quality": quality}))
    write_variant(tmp_path / "priced" / "full", make_card())
    files = write_report(load_cards([tmp_path / "priced"]), tmp_path / "out", plot)
    images = [file for file in files if file.suffix == ".png"]
    assert {image.name for image in images} == {f"quality-{n}.png" for n in ("speed", "throughput", "size", "cost")}
    assert all(image.read_bytes().startswith(b"\x89PNG\r\n") for image in images)


def test_the_interval_is_the_one_of_what_quality_is_derived_from() -> None:
    quality = make_quality(0.9)
    low, high = quality_ci95(quality)
    assert low == pytest.approx(2.718281828 ** -quality.kl_ci95[1]) and low < high
    assert quality_ci95(quality.model_copy(update={"quality_from": "task:x"})) is None
