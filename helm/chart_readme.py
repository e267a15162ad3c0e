"""Write the table of values into the chart's README: `python -m helm.chart_readme`."""

import json
from collections.abc import Iterator

from helm.chart_values import CHART, Value, defaults, documented, sections

README = CHART / "README.md"
_BEGIN, _END = "<!-- values: python -m helm.chart_readme writes this -->\n", "<!-- end of values -->\n"
_LONGEST = 60


def rendered() -> str:
    """Text of the README with the tables of the current values.yaml."""
    before, _, rest = README.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + "\n".join(_tables()) + "\n\n" + _END + after


def _tables() -> Iterator[str]:
    """One table for each group of values, those without a group first."""
    values, groups = documented(), sections()
    members = {name: [value for value in values if value.place[0] == name] for name in defaults()}
    alone = [value for value in values if len(members[value.place[0]]) == 1]
    for name, rows in [("General", alone), *members.items()]:
        if name == "General" or len(rows) > 1:
            yield f"\n### {name}\n"
            if name in groups:
                yield groups[name] + "\n"
            yield "| value | default | |\n|---|---|---|"
            yield from map(_row, rows)


def _row(value: Value) -> str:
    default = json.dumps(value.default, ensure_ascii=False)
    shown = f"`{default}`" if len(default) <= _LONGEST else "see values.yaml"
    text = value.text.replace("|", "\\|")
    return f"| `{'.'.join(value.place)}` | {shown} | {text} |"


if __name__ == "__main__":
    README.write_text(rendered())
