"""`gearbox top`: live terminal view of a running platform, from its metrics port alone."""

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple, TextIO

import httpx
import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from serve.telemetry.prometheus_text import Interval, Samples, ScrapeError, Window, scrape

LOCAL_METRICS = "http://127.0.0.1:9464"
_HISTORY = 24  # scrapes in a sparkline
_TENANTS = 5
_PIPE_COLUMNS = 200  # width when output is not a terminal, so that all columns are shown
_NONE = "–"


def top(
    metrics_url: Annotated[
        str, typer.Option(envvar="GEARBOX_METRICS_URL", help="The platform's metrics port; no API key is needed.")
    ] = LOCAL_METRICS,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between readings.")] = 1.0,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds that rates and quantiles are over.")] = 10.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one reading, over one interval; also where stdout is not a terminal.")
    ] = False,
) -> None:
    """Watch a running platform: its variants, budgets, router and tenants. `q` ends it."""
    url = f"{metrics_url.rstrip('/').removesuffix('/metrics')}/metrics"
    console = Console()
    with httpx.Client(timeout=httpx.Timeout(5, connect=2)) as client:
        watch = Watch(url, window, lambda: scrape(client, url))
        if not once and console.is_terminal:
            _follow(console, watch, interval, sys.stdin)
            return
        for wait_s in (interval, 0.0):
            watch.refresh(time.monotonic())
            if watch.error is not None:
                typer.echo(f"gearbox: {watch.error}", err=True)
                raise typer.Exit(1)
            time.sleep(wait_s)
    if not console.is_terminal:
        console = Console(width=shutil.get_terminal_size((_PIPE_COLUMNS, 50)).columns)
    console.print(watch)


def _follow(console: Console, watch: "Watch", interval_s: float, stdin: TextIO) -> None:
    """Scrape and display until `q` or Ctrl-C."""
    try:
        with _quit_key(stdin) as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                started = time.monotonic()
                watch.refresh(started)
                live.update(watch, refresh=True)
                if pressed(max(0.0, started + interval_s - time.monotonic())):
                    return
    except KeyboardInterrupt:
        return


@contextmanager
def _quit_key(stdin: TextIO) -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits some seconds and returns True at once when `q` is pressed (only on a terminal)."""
    if not stdin.isatty():
        yield _sleep
        return
    terminal = stdin.fileno()
    settings = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield lambda seconds: _q_within(terminal, seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, settings)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _q_within(terminal: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        keys = os.read(terminal, 64)
        if not keys or b"q" in keys.lower():  # end of file: the terminal was closed
            return True
    return False


class Watch:
    """The scraped state of the platform, as a Rich renderable that fits the available width."""

    def __init__(self, url: str, window_s: float, scrape: Callable[[], Samples]) -> None:
        self.error: str | None = None
        self._url, self._scrape = url, scrape
        self._window = Window(window_s)
        self._rates: deque[dict[str, float]] = deque(maxlen=_HISTORY)  # requests/s by variant, one entry per scrape
        self._scraped_at = self._last_success = 0.0

    def refresh(self, now: float) -> None:
        """Scrape once. On failure the last scrape stays and `error` has the reason."""
        self._scraped_at = now
        try:
            self._window.add(now, self._scrape())
        except ScrapeError as error:
            self.error = str(error)
            return
        self.error, self._last_success = None, now
        last = self._window.interval(2)
        if last.seconds:
            counts = last.count_by("variant", "gearbox_requests_total")
            self._rates.append({variant: count / last.seconds for variant, count in counts.items()})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        known = self._window.interval()
        if self.error is not None:
            outage = f"unreachable for {self._scraped_at - self._last_success:.0f} s, " if known.values else ""
            yield _line(f"{outage}retrying: {self.error}", "bold red")
        if not known.values:
            return
        width = options.max_width
        parts: list[RenderableType] = [_line(_headline(known, self._url), "bold")]
        tables = _variants(known, self._rates, width), _profiles(known, width), _parts(known), _tenants(known, width)
        for table in tables:
            if table is not None:
                parts += ["", table]
        body = Group(*parts)
        yield Styled(body, "dim") if self.error is not None else body


def _headline(known: Interval, url: str) -> str:
    builds, models = known.label_values("version", "gearbox_build_info"), known.label_values("model", *known.values)
    over = f"last {known.seconds:.0f} s" if known.seconds >= 1 else f"last {1000 * known.seconds:.0f} ms"
    rate = f"{_number(known.rate('gearbox_requests_total'))} requests/s"
    names = (" ".join(["Gearbox", *builds]), *models, rate, over if known.seconds else "first scrape", url)
    return " · ".join(names)


class _Column(NamedTuple):
    """A table column. When not all columns fit, those of the highest rank numbers are left out."""

    rank: int
    heading: str
    text: bool = False  # otherwise a right-aligned number


def _table(columns: tuple[_Column, ...], rows: list[list[str | Text]], width: int) -> Table:
    """A table of the columns that fit into `width`: always the first; a last column of text is truncated."""
    gap = 2 if width > 100 else 1
    cells = [[*column.heading.split("\n"), *(row[i] for row in rows)] for i, column in enumerate(columns)]
    widths = [max(cell.cell_len if isinstance(cell, Text) else cell_len(cell) for cell in own) for own in cells]
    shown, left = [0], width - widths[0]
    for i in sorted(range(1, len(columns)), key=lambda i: columns[i].rank):
        if columns[i].text:
            widths[i] = min(widths[i], max(left - gap, len("violations")))
        if gap + widths[i] <= left:
            shown.append(i)
            left -= gap + widths[i]
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    for i in sorted(shown):
        table.add_column(
            columns[i].heading, justify="left" if columns[i].text or i == 0 else "right", no_wrap=True,
            overflow="ellipsis", max_width=widths[i], header_style="bold cyan" if i == 0 else "bold",
        )  # fmt: skip
    for row in rows:
        table.add_row(*(row[i] for i in sorted(shown)))
    return table


_VARIANT = (
    _Column(0, "variant"), _Column(1, "state", text=True), _Column(9, "up of\nmost"), _Column(7, "in\nflight"),
    _Column(14, "run/\nwait"), _Column(10, "KV\nused"), _Column(2, "req/s"), _Column(8, "share"),
    _Column(6, "output\ntok/s"), _Column(12, "TTFT\np50 ms"), _Column(3, "TTFT\np95 ms"), _Column(11, "TPOT\np50 ms"),
    _Column(13, "E2E\np95 s"), _Column(5, "quality"), _Column(4, "USD/h\nspent"),
    _Column(15, "requests/s", text=True),
)  # fmt: skip


def _variants(known: Interval, rates: deque[dict[str, float]], width: int) -> Table | None:
    names = known.label_values("variant", "gearbox_variant_up", "gearbox_requests_in_flight")
    quality = {name: known.value("gearbox_variant_quality_ratio", variant=name) for name in names}
    highest = max((rate for scrape_rates in rates for rate in scrape_rates.values()), default=0.0)
    total = known.count("gearbox_requests_total")
    rows: list[list[str | Text]] = []
    for name in sorted(names, key=lambda name: (-(quality[name] or 0), name)):
        labels = {"variant": name}
        replicas, max_replicas = (
            known.value("gearbox_variant_replicas", **labels),
            known.value("gearbox_variant_replicas_max", **labels),
        )
        running, waiting = (
            known.value("gearbox_requests_running", **labels),
            known.value("gearbox_requests_waiting", **labels),
        )
        share = known.count("gearbox_requests_total", **labels) / total if total else None
        spent = known.rate("gearbox_cost_usd_total", **labels)
        rows.append([
            name, _state(known.value("gearbox_variant_up", **labels), replicas),
            _pair(replicas, max_replicas), _number(known.value("gearbox_requests_in_flight", **labels), 0), _pair(running, waiting),
            _percent(known.value("gearbox_variant_kv_cache_usage_ratio", **labels)),
            _number(known.rate("gearbox_requests_total", **labels)), _percent(share),
            _number(known.rate("gearbox_tokens_total", **labels, kind="output"), 0),
            _ms(known.quantile(0.5, "gearbox_ttft_seconds", **labels)),
            _ms(known.quantile(0.95, "gearbox_ttft_seconds", **labels)),
            _ms(known.quantile(0.5, "gearbox_tpot_seconds", **labels)),
            _number(known.quantile(0.95, "gearbox_e2e_seconds", **labels), 2), _number(quality[name], 3),
            _usd_per_hour(spent), _sparkline([scrape_rates.get(name, 0.0) for scrape_rates in rates], highest),
        ])  # fmt: skip
    return _table(_VARIANT, rows, width) if rows else None


def _state(up: float | None, replicas: float | None) -> Text:
    if up is None:
        return Text(_NONE)
    if not up:
        return Text("down", "bold red")
    return Text("at zero", "yellow") if replicas == 0 else Text("up", "green")


_PROFILE = (
    _Column(0, "profile"), _Column(1, "req/s"), _Column(2, "met"), _Column(3, "quality"),
    _Column(4, "violations", text=True),
)  # fmt: skip


def _profiles(known: Interval, width: int) -> Table | None:
    rows: list[list[str | Text]] = []
    for name in sorted(known.label_values("profile", "gearbox_budget_requests_total")):
        met = known.count("gearbox_budget_requests_total", profile=name, met="yes")
        total = known.count("gearbox_budget_requests_total", profile=name)
        kinds = known.label_values("kind", "gearbox_budget_violations_total")
        violations = {kind: known.count("gearbox_budget_violations_total", profile=name, kind=kind) for kind in kinds}
        rows.append([
            name, _number(known.rate("gearbox_budget_requests_total", profile=name)),
            _percent(met / total if total else None),
            _number(known.mean("gearbox_answer_quality_ratio", profile=name), 3), Text(_tally(violations), "yellow"),
        ])  # fmt: skip
    return _table(_PROFILE, rows, width) if rows else None


def _parts(known: Interval) -> Table:
    """Router line, and retrieval line if requests were grounded; wraps between words."""
    covered = known.count("gearbox_prediction_coverage_total", covered="yes")
    bounds = known.count("gearbox_prediction_coverage_total")
    decision_s = known.quantile(0.95, "gearbox_decision_seconds")
    rejected = _tally(known.count_by("code", "gearbox_requests_rejected_total"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    grid.add_row(
        "router",
        f"decision p95 {_number(None if decision_s is None else 1e6 * decision_s, 0)} µs · "
        f"95% bound coverage {_percent(covered / bounds if bounds else None)} · "
        f"failovers {_tally(known.count_by('cause', 'gearbox_failovers_total')) or '0'} · rejected {rejected or '0'}",
    )
    if any(known.values.get("gearbox_grounded_requests_total", {}).values()):
        outcomes = _tally(known.count_by("outcome", "gearbox_grounded_requests_total")) or "none"
        search = _ms(known.quantile(0.95, "gearbox_retrieval_seconds"))
        grid.add_row("retrieval", f"{outcomes} · search p95 {search} ms")
    return grid


_TENANT = (
    _Column(0, "tenant"), _Column(1, "USD/h spent"), _Column(2, "req/s"), _Column(3, "tok/s"),
    _Column(4, "rate limit used"),
)  # fmt: skip


def _tenants(known: Interval, width: int) -> Table | None:
    """The tenants with the highest cost; None without requests."""
    spent = known.count_by("tenant", "gearbox_cost_usd_total")
    requests = known.count_by("tenant", "gearbox_tenant_requests_total")
    busiest = sorted((name for name in requests if requests[name]), key=lambda name: (-spent.get(name, 0.0), name))
    rows: list[list[str | Text]] = []
    for name in busiest[:_TENANTS]:
        used = [
            known.value("gearbox_rate_limit_utilization_ratio", tenant=name, limit=limit)
            for limit in ("requests", "tokens")
        ]
        rows.append([
            name, _usd_per_hour(known.rate("gearbox_cost_usd_total", tenant=name)),
            _number(known.rate("gearbox_tenant_requests_total", tenant=name)),
            _number(known.rate("gearbox_tenant_tokens_total", tenant=name), 0),
            _percent(max((share for share in used if share is not None), default=None)),
        ])  # fmt: skip
    return _table(_TENANT, rows, width) if rows else None


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _tally(counts: dict[str, float]) -> str:
    """Names with their counts, highest count first."""
    nonzero = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:.0f}" for name, count in nonzero)


def _number(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _pair(first: float | None, second: float | None) -> str:
    return _NONE if first is None and second is None else f"{_number(first, 0)}/{_number(second, 0)}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.0f}%"


def _ms(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}"


def _usd_per_hour(per_second: float | None) -> str:
    return _NONE if per_second is None else f"{3600 * per_second:.3g}"


def _sparkline(rates: list[float], highest: float) -> str:
    """One character per scrape; all variants share a scale, so that they can be compared."""
    steps = "▁▂▃▄▅▆▇█"
    return "".join(steps[round(rate / highest * (len(steps) - 1))] if highest else steps[0] for rate in rates)
