"""Tables to text: a line for each row, in which every value has the name of its column, so that a row is understood alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve.retrieval.ingest.formats.document import ConversionError

MAX_CELLS = 2_000_000  # of a table, with those that cells span
_EMPTY = "–"
_MIN_NAMED = 3  # columns of a table whose first row may be recognised as its header: two are often keys and values


@dataclass(slots=True, frozen=True)
class Cell:
    """A cell: its text in one line, the columns and rows that it spans, and whether it is marked as a header."""

    text: str
    columns: int = 1
    rows: int = 1
    header: bool = False


def table_text(rows: Sequence[Sequence[Cell]]) -> str:
    """Lines of a table: `Country: Norway | Per diem: 82`. A value that spans rows is in each of them.

    The header is the rows at the top of which every cell is marked. Without any, it is the first row if that has only distinct
    words and a column below it has only numbers; otherwise the values stand alone.

    Raises:
        ConversionError: more than `MAX_CELLS` cells.
    """
    grid = list(_placed(rows))
    marked = [all(cell.header for cell in row if cell.text) for row in rows if row]
    size = next((i for i, is_header in enumerate(marked) if not is_header), len(marked))
    size = size or _first_row_names(grid)
    names: dict[int, str] = {}
    for placed in grid[:size] if size < len(grid) else []:
        for at, cell in placed:
            for column in range(at, at + cell.columns):
                before = names.get(column, "")
                names[column] = before if cell.text in ("", before) else f"{before} {cell.text}".strip()
    lines = []
    for placed in grid[size:] if names else grid:
        values = [(names.get(at, ""), cell.text) for at, cell in placed if cell.text]
        if len(values) == 1 and len(names) == 2:  # of two columns, a key without its value is no title
            values = [(names.get(at, ""), cell.text or _EMPTY) for at, cell in placed]
        if len(values) == 1:  # a title between the rows, or a row of one column
            lines.append(values[0][1] if len(names) > 1 else ": ".join(filter(None, values[0])))
        elif values:
            lines.append(" | ".join(f"{name}: {text}" if name else text for name, text in values))
    return "\n".join(lines)


def _placed(rows: Sequence[Sequence[Cell]]) -> Iterator[list[tuple[int, Cell]]]:
    """The cells of each row with their columns, also those that reach into it from above."""
    above: dict[int, tuple[int, Cell]] = {}  # by column: rows that the cell reaches into below, and the cell
    cells = 0
    for row in rows:
        placed, column = [(at, cell) for at, (_, cell) in above.items()], 0
        taken = {at + i for at, cell in placed for i in range(cell.columns)}
        below = {at: (left - 1, cell) for at, (left, cell) in above.items() if left > 1}
        for cell in row:
            while column in taken:
                column += 1
            placed.append((column, cell))
            if cell.rows > 1:
                below[column] = cell.rows - 1, cell
            column += cell.columns
        above = below
        cells += len(taken) + sum(cell.columns for cell in row)
        if cells > MAX_CELLS:
            raise ConversionError(f"a table of it has more than {MAX_CELLS} cells")
        if row:
            yield sorted(placed, key=lambda pair: pair[0])


def _first_row_names(grid: Sequence[Sequence[tuple[int, Cell]]]) -> int:
    """1 if the first row reads as the names of the columns, else 0."""
    first, below = [cell for _, cell in grid[0]] if grid else [], grid[1:]
    names = {cell.text for cell in first if cell.text and not _has_digit(cell.text)}
    if len(first) < _MIN_NAMED or len(names) < len(first) or any(cell.columns > 1 for cell in first):
        return 0
    numbers = [{at for at, cell in row if _has_digit(cell.text)} for row in below if len(row) == len(first)]
    return int(len(numbers) > 1 and bool(set.intersection(*numbers)))


def _has_digit(text: str) -> bool:
    return any(char.isdigit() for char in text)
