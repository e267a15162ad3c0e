"""Tables to text: each value with the name of its column."""

import pytest

from serve.retrieval.ingest.formats import tables
from serve.retrieval.ingest.formats.document import ConversionError
from serve.retrieval.ingest.formats.tables import Cell, table_text


def rows(*texts: str) -> list[list[Cell]]:
    """Rows of `a|b`; marked as header where they begin with `#`."""
    return [[Cell(text, header=row[0] == "#") for text in row.removeprefix("#").split("|")] for row in texts]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (rows("#Country|Day", "Norway|82", "Spain|"), "Country: Norway | Day: 82\nCountry: Spain | Day: –"),
        (rows("#City|Day|Night", "Sweden||", "Malmo|50|60"), "Sweden\nCity: Malmo | Day: 50 | Night: 60"),
        (rows("#|Day|Night", "Norway|82|90"), "Norway | Day: 82 | Night: 90"),
        (rows("#Name", "Ada", "Bo"), "Name: Ada\nName: Bo"),
        (rows("#Country|Day"), "Country | Day"),
        (rows("#Country|Day", "#Land|Tag", "Norway|82"), "Country Land: Norway | Day Tag: 82"),
        (rows("Part|Stock|Price", "Seal|3|4", "Hose|none|5"), "Part: Seal | Stock: 3 | Price: 4\nPart: Hose | Stock: none | Price: 5"),
        (rows("Model|Larkspur", "Head|24 m"), "Model | Larkspur\nHead | 24 m"),
        (rows("Ada|chair|Oslo", "Bo|member|Bergen"), "Ada | chair | Oslo\nBo | member | Bergen"),
        (rows("#Country|Day", "Norway|82|extra"), "Country: Norway | Day: 82 | extra"),
        ([], ""),
    ],
)  # fmt: skip
def test_a_row_is_a_line_of_named_values(table, expected):
    assert table_text(table) == expected


def test_cells_that_span_columns_name_them_and_values_that_span_rows_are_in_each():
    table = [
        [Cell("City", rows=2, header=True), Cell("2025", columns=2, header=True)],
        [Cell("Spring", header=True), Cell("Autumn", header=True)],
        [Cell("Oslo", rows=2), Cell("1"), Cell("2")],
        [Cell("3"), Cell("4")],
    ]
    assert table_text(table) == (
        "City: Oslo | 2025 Spring: 1 | 2025 Autumn: 2\nCity: Oslo | 2025 Spring: 3 | 2025 Autumn: 4"
    )


def test_a_cell_over_both_of_two_columns_is_a_title():
    table = [*rows("#Country|Day", "Norway|82"), [Cell("Closed", columns=2)]]
    assert table_text(table) == "Country: Norway | Day: 82\nClosed"


def test_a_table_whose_spans_make_it_huge_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "MAX_CELLS", 1000)
    with pytest.raises(ConversionError, match="1000 cells"):
        table_text([[Cell("a", columns=500, rows=9)], [Cell("b")], [Cell("c")]])
