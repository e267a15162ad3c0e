"""Claims: evaluation of aims, updates of rows, and agreement of results, rows, tables and docs/reference/claims.md."""

import json
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.reporting import claims, results, tables
from benchmarks.reporting.claims import Claim, ClaimsError, meets
from benchmarks.reporting.figures import figure

ROW = {
    "id": "decision.8.decide_us", "area": "routing", "claim": "a decision", "aim": "< 50", "unit": "µs", "measured": 69.6,
    "low": 68.4, "high": 70.5, "baseline": None, "baseline_measured": None, "command": "python -m benchmarks.routing.decision",
    "machine": "a processor, 2 cores", "measured_at": "2026-11-24T18:29:59+00:00", "commit": "0123abc",
}  # fmt: skip


def claim(**changes) -> Claim:
    return Claim.model_validate({**ROW, **changes})


class TestAims:
    @pytest.mark.parametrize(
        ("aim", "met", "missed"),
        [
            (">= 0.95", (0.95, 1), (0.9499, -1)),
            ("<= 5", (5, -3), (5.01,)),
            ("== 0", (0,), (1, -1)),
            ("> 1.5", (1.51,), (1.5,)),
            ("< 50", (49.9,), (50, 69.6)),
            ("0.93 to 0.98", (0.93, 0.95, 0.98), (0.92, 0.99)),
            (">= -0.5", (-0.5,), (-0.6,)),
            ("<= 1e-3", (0.001,), (0.002,)),
        ],
    )
    def test_it_says_whether_an_aim_is_met(self, aim, met, missed):
        assert all(meets(aim, value) is True for value in met)
        assert all(meets(aim, value) is False for value in missed)

    def test_a_figure_without_an_aim_neither_meets_nor_misses(self):
        assert meets(None, 1.0) is None
        assert claim(aim=None).met is None

    @pytest.mark.parametrize("aim", ["", "0.95", "under 5", "=> 5", ">= 5 ms", "5 to", "2 to 1", ">= nan", "> 1, < 2"])
    def test_an_aim_in_other_words_is_refused(self, aim):
        with pytest.raises(ValidationError):
            claim(aim=aim)

    def test_met_is_computed_and_no_other_is_believed(self):
        assert claim().met is False
        assert claim(measured=40, low=None, high=None).met is True
        with pytest.raises(ValidationError, match="met is True"):
            claim(met=True)


class TestRows:
    @pytest.mark.parametrize(
        "changes",
        [
            {"area": "speed"}, {"id": "decision"}, {"id": "a b.c"}, {"measured": float("nan")}, {"low": 9.0, "high": 8.0},
            {"note": "by hand"}, {"claim": ""}, {"measured_at": "2026-11-24T18:29:59"}, {"measured": float("inf")},
        ],
    )  # fmt: skip
    def test_what_is_no_claim_is_refused(self, changes):
        with pytest.raises(ValidationError):
            claim(**changes)

    def test_a_row_takes_the_place_of_the_one_with_its_id(self, tmp_path: Path):
        claims.upsert([claim(), claim(id="a.b", aim=None)], tmp_path)
        found = claims.upsert([claim(measured=40, low=None)], tmp_path)
        assert [(one.id, one.measured, one.met) for one in found] == [
            ("a.b", 69.6, None),
            ("decision.8.decide_us", 40, True),
        ]
        assert claims.read(tmp_path) == found
        assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]

    def test_figures_that_a_result_no_longer_has_go(self, tmp_path: Path):
        claims.upsert([claim(), claim(id="decision.9.decide_us"), claim(id="a.b")], tmp_path)
        found = claims.upsert([claim()], tmp_path, replaced=["decision"])
        assert [one.id for one in found] == ["a.b", "decision.8.decide_us"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no JSON"),
            ('[{"id": "a.b"', "no JSON"),
            ("{}", "no list"),
            ("[1]", "row 0"),
            (json.dumps([ROW, {**ROW, "id": "a.b", "met": True}]), r"row 1 \(a\.b\)"),
            (json.dumps([ROW, ROW]), "twice"),
        ],
    )
    def test_a_broken_file_is_said_and_left_as_it_is(self, tmp_path: Path, text, message):
        (tmp_path / "claims.json").write_text(text)
        with pytest.raises(ClaimsError, match=message):
            claims.upsert([claim(id="a.b")], tmp_path)
        assert (tmp_path / "claims.json").read_text() == text

    def test_a_failure_in_the_middle_of_writing_leaves_the_old_rows(self, tmp_path: Path, monkeypatch):
        before = claims.upsert([claim()], tmp_path)

        def fail(self: Path, target: Path) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            claims.upsert([claim(id="a.b")], tmp_path)
        assert claims.read(tmp_path) == before

    def test_benchmarks_that_end_together_keep_each_others_rows(self, tmp_path: Path):
        with ProcessPoolExecutor(4) as pool:
            list(pool.map(_upsert, [(tmp_path, f"a.{i}") for i in range(24)]))
        assert len(claims.read(tmp_path)) == 24

    def test_missed_aims_come_first_then_met_ones_each_by_area_and_number(self):
        found = [
            claim(id="a.load-1.5"), claim(id="a.load-10"), claim(id="a.load-1"), claim(id="b.c", area="contract"),
            claim(id="b.met", area="contract", measured=1, low=None), claim(id="b.plain", area="contract", aim=None),
        ]  # fmt: skip
        assert [one.id for one in claims.ordered(reversed(found))] == [
            "b.c", "a.load-1", "a.load-1.5", "a.load-10", "b.met", "b.plain",
        ]  # fmt: skip

    def test_the_command_prints_the_missed_ones_first(self, tmp_path: Path, monkeypatch, capsys):
        claims.upsert([claim(id="b.met", claim="reached", measured=1, low=None), claim(claim="lost")], tmp_path)
        monkeypatch.setattr(claims, "read", lambda read=claims.read: read(tmp_path))
        assert claims.main([]) == 0
        shown = capsys.readouterr().out
        assert shown.index("lost") < shown.index("reached")
        assert "1 aims missed, 1 met, 0 figures without an aim" in shown


class TestFigures:
    def test_the_forms_of_a_spread(self):
        one = figure("A b.c", "routing", "x", {"median": 2, "min": 1, "max": 4, "n": 3}, scale=10, against=("full", 3))
        assert (one.id, one.measured, one.low, one.high, one.baseline, one.baseline_measured) == (
            "a-b.c", 20, 10, 40, "full", 30,
        )  # fmt: skip
        assert figure("a", "routing", "x", {"share": 0.5, "ci95": [0.4, 0.6]}).high == 0.6
        assert figure("a", "routing", "x", {"mean": 0.5, "ci95": [0.4, 0.6]}).low == 0.4
        assert figure("a", "routing", "x", {"median": 2, "min": 2, "max": 2, "n": 1}).low is None

    def test_a_result_that_lacks_a_part_is_said(self):
        result = results.load("decision")
        del result["variants"]["8"]["decide_us"]
        with pytest.raises(ClaimsError, match="'decision'"):
            claims.rows("decision", result, None)

    def test_saving_a_result_writes_its_claims(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        claims.upsert([claim(), claim(id="decision.gone"), claim(id="other.x")], tmp_path)
        saved = results.load("decision") or json.loads((claims.RESULTS / "decision.json").read_text())
        saved["variants"]["8"]["decide_us"] = {"median": 40, "min": 39, "max": 41, "n": 3}
        results.save("decision", {key: saved[key] for key in ("variants", "aims_us", "shares")})
        found = {one.id: one for one in claims.read(tmp_path)}
        assert (found["decision.8.decide_us"].measured, found["decision.8.decide_us"].met) == (40, True)
        assert "decision.gone" not in found
        assert "other.x" in found

    def test_a_quick_run_makes_no_claims(self, tmp_path: Path):
        claims.upsert([claim()], tmp_path)
        quick = {**results.load("decision"), "command": "python -m benchmarks.routing.decision --quick"}
        claims.record("decision", quick, tmp_path)
        assert claims.read(tmp_path) == [claim()]
        (tmp_path / "decision.json").write_text(json.dumps(quick))
        with pytest.raises(ClaimsError, match="quick run"):
            claims.from_results(tmp_path)


class TestAgreement:
    """What is committed. A commit is no part of it: it is what git says, which a shallow copy does not know."""

    @pytest.fixture(scope="class")
    def of_results(self) -> list[tuple[str, str]]:
        """What the rows must be; calls git for each result."""
        return sorted(map(_facts, claims.from_results()))

    def test_the_rows_are_those_of_the_results(self, of_results):
        assert [_facts(one) for one in claims.read()] == of_results, RUN

    def test_every_row_has_its_result(self):
        names = {path.stem for path in claims.RESULTS.glob("*.json")}
        assert {one.source for one in claims.read()} <= names
        assert {name for _, sources in tables.TABLES.values() for name in sources} <= set(claims.FIGURES)

    def test_the_page_is_that_of_the_rows(self):
        assert claims.PAGE.read_text() == claims.page(claims.read()), RUN

    @pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
    def test_the_tables_on_the_pages_are_claims(self, path: Path):
        for name, text in re.findall(r"<!-- table:(\S+) -->\n(.*?)<!-- /table", path.read_text(), re.DOTALL):
            assert _strange(text, tables.TABLES[name][1]) == set(), name

    def test_a_number_that_nobody_measured_is_found(self):
        text = tables.variants(results.load("variants"))
        changed = text.replace("| 17.76 |", "| 17.75 |")
        assert changed != text
        assert _strange(changed, ("variants",)) == {"17.75"}

    @pytest.mark.parametrize("name", sorted({one.source for one in claims.read()}))
    def test_a_result_without_its_claims_is_found(self, name: str, of_results):
        remaining = [one for one in claims.read() if one.source != name]
        assert [_facts(one) for one in remaining] != of_results


RUN = "run 'python -m benchmarks.reporting.claims --from-results'"


def _facts(one: Claim) -> tuple[str, str]:
    return one.id, one.model_dump_json(exclude={"commit"})


def _upsert(at: tuple[Path, str]) -> None:
    claims.upsert([claim(id=at[1])], at[0])


def _strange(text: str, sources) -> set[str]:
    """Numbers in the cells of the tables in `text` that are no claim of `sources`, in any rounding."""
    known: set[str] = set()
    for one in claims.read():
        if one.source not in sources:
            continue
        values = [one.measured, one.low, one.high, one.baseline_measured]
        if one.baseline_measured:
            values.append(one.measured / one.baseline_measured)
        for value in (value for value in values if value is not None):
            known |= {f"{abs(value):.{digits}f}" for digits in range(5)}
            known |= {f"{abs(value):.{digits}%}" for digits in range(3)}
        known |= set(
            re.findall(r"\d+(?:\.\d+)?", one.claim.replace(",", ""))
        )  # of how many, and what is not measured: sizes, loads
    found: set[str] = set()
    head: list[str] = []
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    for row, below in zip(lines, [*lines, [""]][1:], strict=True):
        if below[0] == "---":
            head = row
        elif row[0] != "---":
            for name, cell in list(zip(head, row, strict=True))[1:]:
                numbers = "" if name == "made by" else re.sub(r"`[^`]*`", "", cell).replace(",", "")  # a recipe
                found |= set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?%?(?![\w.]*[a-z])|\d+\.\d+(?=x)", numbers))
    return found - known
