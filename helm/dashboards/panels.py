"""Builders of Gearbox's panels, variables and dashboards with the Grafana Foundation SDK."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, timeseries, xychart
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    FieldTextAlignment,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    GridPos,
    Panel,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.xychart import SeriesMapping, XYShowMode

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
TAG = "gearbox"
GREEN, YELLOW, RED = "green", "yellow", "red"
NOTHING = SpecialValueMap(
    options=DashboardSpecialValueMapOptions(
        match=SpecialValueMatch.NULL_AND_NAN, result=ValueMappingResult(text="-", index=0)
    )
)
Levels = Sequence[tuple[float | None, str]]  # thresholds: a colour from each value on; the first has no value


@dataclass(frozen=True, slots=True)
class Line:
    """One query of a chart, and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a table or scatter plot, by the labels of its rows; without a name, only its labels are shown."""

    name: str
    expr: str
    unit: str
    decimals: int | None = None


def chart(
    title: str, description: str, unit: str, *lines: Line, span: int = 8, stacked: bool = False, top: float | None = None,
    levels: Levels = (), floor: bool = True,
) -> Panel:  # fmt: skip
    """Time series panel.

    Args:
        description: the panel's description: what it shows, and what to do when it looks bad.
        top: maximum of the axis, if known.
        levels: thresholds, drawn as coloured lines.
        floor: whether the axis starts at zero.
    """
    panel = (
        timeseries.Panel()
        .title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(8)
        .legend(common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .line_width(1).fill_opacity(10).targets([_range(line, i) for i, line in enumerate(lines)])
    )  # fmt: skip
    if floor:
        panel.min(0)
    if top is not None:
        panel.max(top)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A")).fill_opacity(60)
    if levels:
        panel.thresholds(_thresholds(levels))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return panel.build()


def stat(title: str, description: str, unit: str, expr: str, *, span: int = 6, levels: Levels = ((None, "text"),),
         decimals: int | None = None) -> Panel:  # fmt: skip
    """Stat panel: one number of the dashboard's time range."""
    query = Dataquery().expr(expr).instant().ref_id("A").datasource(SOURCE)
    panel = (
        stats.Panel()
        .title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(4)
        .mappings([NOTHING]).no_value("-").graph_mode(BigValueGraphMode.NONE).thresholds(_thresholds(levels))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).targets([query])
    )  # fmt: skip
    if decimals is not None:
        panel.decimals(decimals)
    return panel.build()


def table(
    title: str, description: str, by: str, *columns: Column, facts: str = "", span: int = WIDTH, height: int = 8
) -> Panel:
    """Table panel: one row for each combination of the labels `by`, which every column's query must keep.

    Args:
        facts: additional labels, from the column without a name.
    """
    panel = (
        tables.Panel()
        .title(title).description(description).datasource(SOURCE).unit("none").span(span).height(height)
        .mappings([NOTHING]).no_value("-").align(FieldTextAlignment.AUTO)
        .targets([_instant(column, i) for i, column in enumerate(columns)])
    )  # fmt: skip
    for step in _rows(f"{by}, {facts}" if facts else by, columns):
        panel.with_transformation(step)
    for column in columns:
        if column.name:
            panel.override_by_name(column.name, _as(column))
    return panel.build()


def scatter(title: str, description: str, by: str, x: Column, y: Column, *, span: int = 12) -> Panel:
    """Scatter plot: one point for each combination of the labels `by`."""
    labels = [label.strip() for label in by.split(",")]
    panel = (
        xychart.Panel()
        .title(title).description(description).datasource(SOURCE).unit(y.unit).span(span).height(9)
        .targets([_instant(column, i) for i, column in enumerate((x, y))])
        .mapping(SeriesMapping.AUTO).show(XYShowMode.POINTS)
        .point_size(xychart.XychartFieldConfigPointSize().fixed(12))
        .legend(common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
    )  # fmt: skip
    for step in _rows(by, (x, y)):
        panel.with_transformation(step)
    # a series, and so a colour, for each point
    panel.with_transformation(
        DataTransformerConfig(
            id_val="partitionByValues",
            options={"fields": [_titled(label) for label in labels], "keepFields": False, "naming": {"asLabels": True}},
        )
    )
    for column in (x, y):
        axis = DynamicConfigValue(id_val="custom.axisLabel", value=column.name)
        panel.override_by_name(column.name, [*_as(column), axis])
    return panel.build()


def _rows(by: str, columns: Sequence[Column]) -> list[DataTransformerConfig]:
    """One table of all queries' results: a row for each set of labels, a column for each query."""
    labels = [label.strip() for label in by.split(",")]
    names = {label: _titled(label) for label in labels}
    names |= {f"Value #{_letter(i)}": column.name for i, column in enumerate(columns) if column.name}
    hidden = ["Time", *(f"Value #{_letter(i)}" for i, column in enumerate(columns) if not column.name)]
    order = {name: i for i, name in enumerate(names)}
    organize = {"excludeByName": dict.fromkeys(hidden, True), "indexByName": order, "renameByName": names}
    return [
        DataTransformerConfig(id_val="merge", options={}),
        DataTransformerConfig(id_val="organize", options=organize),
    ]


def _as(column: Column) -> list[DynamicConfigValue]:
    """Format of a column's values."""
    properties = [DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.decimals is not None:
        properties.append(DynamicConfigValue(id_val="decimals", value=column.decimals))
    return properties


def _range(line: Line, at: int) -> Dataquery:
    query = Dataquery().expr(line.expr).range().legend_format(line.legend)
    return query.ref_id(_letter(at)).datasource(SOURCE)


def _instant(column: Column, at: int) -> Dataquery:
    query = Dataquery().expr(column.expr).instant().format(PromQueryFormat.TABLE)
    return query.ref_id(_letter(at)).datasource(SOURCE)


def _letter(at: int) -> str:
    return chr(ord("A") + at)


def _titled(label: str) -> str:
    return label.replace("_", " ").capitalize()


def _thresholds(levels: Levels) -> grafana.ThresholdsConfig:
    steps = [Threshold(value=value, color=color) for value, color in levels]
    return grafana.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[str], rows: Sequence[tuple[str, Sequence[Panel]]]
) -> Dashboard:
    """Rows of panels below the variables.

    Args:
        variables: names out of `model`, `variant`, `profile` and `tenant`.
        rows: a title and panels, placed side by side and wrapped at the full width.
    """
    everywhere = (
        grafana.DashboardLink("Gearbox").type(DashboardLinkType.DASHBOARDS).tags([TAG])
        .as_dropdown(True).include_vars(True).keep_time(True).icon("dashboard")
    )  # fmt: skip
    built = (
        grafana.Dashboard(title)
        .uid(uid).description(description).tags([TAG]).editable().tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s").time("now-1h", "now").link(everywhere)
        .with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )  # fmt: skip
    for name in variables:
        built.with_variable(_variable(name))
    ids, y = 1, 0
    for row, panels in rows:
        built.with_row(grafana.Row(row).id(ids).grid_pos(GridPos(x=0, y=y, w=WIDTH, h=1)))
        ids, y, x, tallest = ids + 1, y + 1, 0, 0
        for panel in panels:
            place = panel.grid_pos
            assert place is not None
            if x + place.w > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place.x, place.y, panel.id_val = x, y, ids
            ids, x, tallest = ids + 1, x + place.w, max(tallest, place.h)
            built.with_panel(_Built(panel))
        y += tallest
    return built.build()


class _Built(grafana.Panel):
    """Wraps a finished panel where the SDK expects a builder."""

    def __init__(self, panel: Panel) -> None:
        self._internal = panel


_VALUES = {  # query of each variable's values
    "model": "label_values(gearbox_build_info, model)",
    "variant": 'label_values(gearbox_variant_info{model=~"$model"}, variant)',
    "profile": 'label_values(gearbox_budget_requests_total{model=~"$model"}, profile)',
    "tenant": 'label_values(gearbox_tenant_requests_total{model=~"$model"}, tenant)',
}


def _variable(name: str) -> grafana.QueryVariable:
    everything = VariableOption(text="All", value="$__all")
    return (
        grafana.QueryVariable(name)
        .label(_titled(name)).datasource(SOURCE).query({"query": _VALUES[name], "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True).include_all(True).all_value(".+").current(everything)
    )  # fmt: skip
