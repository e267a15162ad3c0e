"""`gearbox top` on metrics pages from the platform's own metrics, and with a metrics port that stops and recovers."""

import io
import os
import re
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import httpx
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.lib.sample_catalog import MODEL, three_gears
from serve.cli.client import app
from serve.cli.top import Watch, _follow
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics
from serve.telemetry.metrics_server import Exposition, expose
from serve.telemetry.prometheus_text import parse, scrape
from tests.support import http_server

URL = "http://127.0.0.1:9464/metrics"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests run there may be none, or a dumb one."""
    monkeypatch.setenv("TERM", "xterm-256color")


class Platform:
    """The metrics of a platform, without the platform."""

    def __init__(self, variants: list[Variant]) -> None:
        self.variants = {variant.name: variant for variant in variants}
        self.restart()

    def restart(self) -> None:
        self.metrics = Metrics()
        self.metrics.initialize_series(self.variants, ("best", "fast"))
        self._page = Exposition(self.metrics, MODEL, lambda: self.variants.values(), None)

    def page(self) -> bytes:
        return expose(self._page)[0]

    def answer(
        self, variant: str, profile: str, *, ttft_s: float = 0.15, quality: float = 1.0, met: bool = True
    ) -> None:
        """One request by acme that went through: 2 s, 50 tokens at 25 ms, 0.00001 USD."""
        metrics = self.metrics
        metrics.requests.labels(variant, profile, "answered").inc()
        metrics.tenant_requests.labels("acme", "answered").inc()
        metrics.tokens.labels(variant, "input").inc(1000)
        metrics.tokens.labels(variant, "output").inc(50)
        metrics.tenant_tokens.labels("acme", "output").inc(50)
        metrics.cost.labels("acme", variant).inc(0.00001)
        metrics.budgets.labels(profile, "yes" if met else "no").inc()
        if not met:
            metrics.violations.labels(profile, "ttft").inc()
        metrics.quality.labels(profile).observe(quality)
        metrics.ttft.labels(variant, profile).observe(ttft_s)
        metrics.tpot.labels(variant, profile).observe(0.025)
        metrics.e2e.labels(variant, profile).observe(1.75)
        metrics.decision.observe(0.00004)
        metrics.prediction_coverage.labels(variant, "ttft", "yes" if met else "no").inc()


@pytest.fixture
def platform() -> Platform:
    return Platform(three_gears())


@pytest.fixture
def watch(platform: Platform) -> Watch:
    return Watch(URL, 10, lambda: parse(platform.page().decode()))


def shown(watch: Watch, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(watch)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_a_variant_has_its_state_load_traffic_latency_quality_and_cost(platform, watch):
    full = platform.variants["full"].live
    full.running, full.waiting, full.kv_usage = 3, 1, 0.42
    platform.metrics.in_flight.labels("full").set(4)
    platform.answer("full", "best", ttft_s=60)  # before the first refresh
    watch.refresh(0)
    for ttft_s in (0.15, 0.15, 0.3, 0.3):
        platform.answer("full", "best", ttft_s=ttft_s)
    platform.answer("int8", "fast")
    watch.refresh(2)
    text = shown(watch)
    # TTFT: 2 in 100..200 ms and 2 in 200..350 ms; TPOT: all in 20..30 ms; E2E: all in 1.5..2 s; 20 µUSD/s
    assert " ".join(row(text, "full")) == "full up 1/1 4 3/1 42% 2.0 80% 100 200 335 25.0 1.98 1.000 0.072 █"
    assert row(text, "int8")[6:9] == ["0.5", "20%", "25"]
    assert " ".join(row(text, "distilled")) == "distilled up 1/1 0 0/0 0% 0.0 0% 0 – – – – 0.800 0 ▁"
    assert re.match(rf"Gearbox \S+ · {MODEL} · 2\.5 requests/s · last 2 s · {URL}\n", text)


def test_unavailable_variants_and_those_at_zero_are_distinguished(platform, watch):
    platform.variants["full"].live.replicas = 0
    platform.variants["int8"].live.replicas = 0
    page = platform.page().decode()
    page = re.sub(r'(gearbox_variant_up\{.*"int8"\}) .*', r"\1 1.0", page)  # it scales to zero
    watch = Watch(URL, 10, lambda: parse(page))
    watch.refresh(0)
    text = shown(watch)
    assert row(text, "full")[1:3] == ["down", "0/1"]
    assert row(text, "int8")[1:4] == ["at", "zero", "0/1"]


def test_a_profile_has_its_attainment_delivered_quality_and_violations(platform, watch):
    watch.refresh(0)
    platform.answer("full", "best")
    platform.answer("int8", "best", quality=0.95)
    platform.answer("int8", "best", quality=0.95, met=False)
    platform.answer("distilled", "best", quality=0.8, met=False)
    platform.metrics.violations.labels("best", "e2e").inc(3)
    watch.refresh(4)
    text = shown(watch)
    assert row(text, "best") == ["best", "1.0", "50%", "0.925", "e2e", "3,", "ttft", "2"]
    assert row(text, "fast") == ["fast", "0.0", "–", "–"]


def test_the_router_and_retrieval_have_a_line(platform, watch):
    watch.refresh(0)
    assert "retrieval" not in shown(watch)
    for met in (True, True, True, False):
        platform.answer("full", "best", met=met)
    platform.metrics.failovers.labels("full", "engine").inc(2)
    platform.metrics.rejected.labels("429", "rate_limit_exceeded", "generation").inc(3)
    platform.metrics.rejected.labels("503", "no_healthy_variant", "generation").inc()
    platform.metrics.grounded.labels("used").inc(5)
    platform.metrics.grounded.labels("abstained").inc()
    platform.metrics.retrieval.observe(0.03)
    watch.refresh(1)
    text = shown(watch)
    assert (
        "decision p95 48 µs · 95% bound coverage 75% · failovers engine 2 · "
        "rejected rate_limit_exceeded 3, no_healthy_variant 1"
    ) in text
    assert re.search(r"retrieval +used 5, abstained 1 · search p95 48\.8 ms", text)


def test_tenants_are_in_the_order_of_their_spend(platform, watch):
    watch.refresh(0)
    for i in range(8):
        platform.metrics.tenant_requests.labels(f"tenant-{i}", "answered").inc(2)
        platform.metrics.cost.labels(f"tenant-{i}", "full").inc(i / 3600)
    platform.metrics.tenant_tokens.labels("tenant-7", "input").inc(30)
    platform.metrics.rate_limit_utilization.labels("tenant-7", "requests").set(0.2)
    platform.metrics.rate_limit_utilization.labels("tenant-7", "tokens").set(0.9)
    platform.metrics.tenant_requests.labels("idle", "answered")
    watch.refresh(2)
    text = shown(watch)
    assert re.findall(r"tenant-\d", text) == [f"tenant-{i}" for i in (7, 6, 5, 4, 3)]
    assert row(text, "tenant-7") == ["tenant-7", "3.5", "1.0", "15", "90%"]
    assert "idle" not in text


def test_a_restarted_platform_counts_from_zero(platform, watch):
    for _ in range(100):
        platform.answer("full", "best")
    watch.refresh(0)
    platform.restart()
    for _ in range(6):
        platform.answer("full", "best")
    watch.refresh(2)
    assert row(shown(watch), "full")[6] == "3.0"


def test_the_sparkline_shows_each_look_on_one_scale_for_all_variants(platform, watch):
    watch.refresh(0)
    for second, (full, int8) in enumerate(((0, 7), (1, 3), (7, 0)), start=1):
        for variant, count in (("full", full), ("int8", int8)):
            for _ in range(count):
                platform.answer(variant, "best")
        watch.refresh(second)
    text = shown(watch)
    assert row(text, "full")[-1] == "▁▂█"
    assert row(text, "int8")[-1] == "█▄▁"


def test_an_idle_platform_and_one_seen_for_the_first_time_are_dashes(platform, watch):
    watch.refresh(0)
    text = shown(watch)
    assert "first scrape" in text
    assert row(text, "full")[6:-1] == ["–", "–", "–", "–", "–", "–", "–", "1.000"]
    watch.refresh(1)
    assert row(shown(watch), "full")[6:13] == ["0.0", "–", "0", "–", "–", "–", "–"]
    assert "decision p95 – µs · 95% bound coverage – · failovers 0 · rejected 0" in shown(watch)


def test_a_platform_without_variants_is_shown():
    platform = Platform([])
    watch = Watch(URL, 10, lambda: parse(platform.page().decode()))
    watch.refresh(0)
    watch.refresh(1)
    assert "decision p95 – µs" in shown(watch)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_a_narrow_terminal_gets_fewer_columns_and_nothing_broken(platform, watch, width):
    long = "distilled-and-pruned-and-int8"
    platform.variants[long] = platform.variants.pop("distilled")
    platform.metrics.rate_limit_utilization.labels("acme", "requests").set(0.1)
    watch.refresh(0)
    for _ in range(40):
        platform.answer("full", "best", met=False)
    for kind in ("e2e", "cost", "quality", "rejected", "failed", "tpot"):
        platform.metrics.violations.labels("best", kind).inc(12345)
    watch.refresh(1)
    lines = shown(watch, width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert sum(line.startswith("full") for line in lines) == 1
    if width >= 80:
        cells = row("\n".join(lines), "full")
        assert {"up", "40.0", "100%", "1.000", "1.44", "195"} <= set(cells), "the most telling columns remain"
        assert len(lines) <= 24


def test_a_page_from_elsewhere_without_most_metrics_is_shown():
    watch = Watch(URL, 10, lambda: parse('gearbox_requests_in_flight{variant="full"} 2\n'))
    watch.refresh(0)
    watch.refresh(1)
    assert row(shown(watch), "full")[:5] == ["full", "–", "–", "2", "–"]


@contextmanager
def serving(page: Callable[[], bytes], port: int = 0, status: int = 200) -> Iterator[int]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(page())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Page)
    with http_server.serving(server):
        yield server.server_port


def test_an_unreachable_platform_is_reported_with_its_last_values_until_it_returns(platform):
    with httpx.Client(trust_env=False) as client:
        with serving(platform.page) as port:
            url = f"http://127.0.0.1:{port}/metrics"
            watch = Watch(url, 10, lambda: scrape(client, url))
            watch.refresh(0)
            for _ in range(4):
                platform.answer("full", "best")
            watch.refresh(1)
        watch.refresh(4)
        text = shown(watch)
        assert re.match(rf"unreachable for 3 s, retrying: no answer from {url}: .+\n", text)
        assert row(text, "full")[6] == "4.0"
        assert all(len(line) <= 80 for line in shown(watch, 80).splitlines())
        console = Console(width=100, file=io.StringIO(), force_terminal=True)
        console.print(watch)
        assert "\x1b[2" in console.file.getvalue(), "greyed"
        platform.restart()
        for _ in range(3):
            platform.answer("full", "best")
        with serving(platform.page, port):
            watch.refresh(7)
    text = shown(watch)
    assert "retrying" not in text
    assert "last 7 s" in text
    assert row(text, "full")[6] == "1.0", "7 requests since the first look, over the restart"


def test_a_platform_that_was_never_there_is_only_said():
    with httpx.Client(trust_env=False) as client:
        watch = Watch(URL, 10, lambda: scrape(client, "http://127.0.0.1:1/metrics"))
        watch.refresh(0)
    assert re.fullmatch(r"retrying: no answer from http://127.0.0.1:1/metrics: .+\n", shown(watch))


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("GEARBOX_METRICS_URL", raising=False)


def gearbox_top(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["top", "--interval", "0.1", *arguments], env=env, catch_exceptions=False)


@pytest.mark.usefixtures("_own_environment")
def test_once_prints_one_look_over_one_interval(platform):
    pages = []

    def page() -> bytes:
        pages.append(platform.page())
        platform.answer("full", "best")
        return pages[-1]

    with serving(page) as port:
        for url in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/metrics/"):
            result = gearbox_top("--once", "--metrics-url", url)
            assert result.exit_code == 0, result.output
            assert 1 < float(row(result.stdout, "full")[6]) <= 10, "one request in a little over 0.1 s"
            assert "\x1b" not in result.stdout
        assert len(pages) == 4
        assert "█" in row(result.stdout, "full")[-1], "all columns where no terminal says how wide it is"
        result = gearbox_top(env={"GEARBOX_METRICS_URL": url, "COLUMNS": "80"})
        assert result.exit_code == 0, "the same without a terminal"
        assert all(len(line) <= 80 for line in result.stdout.splitlines())
        assert row(result.stdout, "full")[1] == "up"


@pytest.mark.usefixtures("_own_environment")
@pytest.mark.parametrize(
    ("page", "status", "says"),
    [
        (b"<html><body>hello</body></html>", 200, "it is not in Prometheus' text format"),
        (b"up 1\n", 200, "it has no gearbox_ metric"),
        (b"", 200, "it has no gearbox_ metric"),
        (b"no\n", 404, "it answered 404"),
    ],
)
def test_once_says_in_one_line_that_a_page_is_not_gearboxs(page, status, says):
    with serving(lambda: page, status=status) as port:
        result = gearbox_top("--once", "--metrics-url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"gearbox: http://127.0.0.1:{port}/metrics is not a Gearbox metrics page: {says}\n"


@pytest.mark.usefixtures("_own_environment")
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:9464", "http://[", "ftp://127.0.0.1"])
def test_once_says_in_one_line_that_nobody_answers(url):
    result = gearbox_top("--once", "--metrics-url", url)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(r"gearbox: no answer from .+\n", result.stderr)


def test_q_ends_the_live_view_at_once_and_gives_the_terminal_back(platform):
    with terminal() as terminal_:

        def page():
            terminal_.type(b"xq")
            return parse(platform.page().decode())

        console = Console(file=terminal_.file, force_terminal=True, width=80, height=24)
        _follow(console, Watch(URL, 10, page), 60, terminal_.file)
        written = terminal_.closed()
    assert written.index("\x1b[?1049h") < written.index("distilled") < written.index("\x1b[?1049l"), "alternate screen"


def test_ctrl_c_ends_the_live_view_and_gives_the_terminal_back():
    def interrupted():
        raise KeyboardInterrupt

    with terminal() as terminal_:
        console = Console(file=terminal_.file, force_terminal=True)
        _follow(console, Watch(URL, 10, interrupted), 60, terminal_.file)
        assert terminal_.closed().endswith("\x1b[?25h\x1b[?1049l")


def test_a_key_other_than_q_does_not_shorten_the_wait_and_looks_go_on(platform):
    scrapes = []

    with terminal() as terminal_:

        def page():
            scrapes.append(time.monotonic())
            terminal_.type(b"x" if len(scrapes) < 3 else b"Q")
            return parse(platform.page().decode())

        _follow(Console(file=io.StringIO(), force_terminal=True), Watch(URL, 10, page), 0.05, terminal_.file)
    assert len(scrapes) == 3
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(scrapes))


def test_without_a_terminal_to_type_in_the_live_view_goes_on_until_it_is_interrupted(platform):
    scrapes = []

    def page():
        scrapes.append(len(scrapes))
        if len(scrapes) == 3:
            raise KeyboardInterrupt
        return parse(platform.page().decode())

    _follow(Console(file=io.StringIO(), force_terminal=True), Watch(URL, 10, page), 0.001, io.StringIO())
    assert scrapes == [0, 1, 2]


class Terminal:
    """Both ends of a terminal: what the command has, and who types and reads."""

    def __init__(self) -> None:
        self._hand, line = os.openpty()
        self.file = io.TextIOWrapper(os.fdopen(line, "r+b", buffering=0), write_through=True)
        self._settings = termios.tcgetattr(line)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # its way to say that the other end was closed
            while piece := os.read(self._hand, 4096):
                self._written += piece

    def type(self, keys: bytes) -> None:
        os.write(self._hand, keys)

    def closed(self) -> str:
        """All that was written. Checks that the terminal is as it was."""
        assert termios.tcgetattr(self.file) == self._settings
        self.file.close()
        self._reader.join(5)
        return self._written.decode()


@contextmanager
def terminal() -> Iterator[Terminal]:
    both = Terminal()
    yield both
    both.file.close()
    both._reader.join(5)
    os.close(both._hand)
