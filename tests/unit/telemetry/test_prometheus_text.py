"""Rates and quantiles between two metrics pages, against hand-calculated numbers and a reference that sorts."""

import math
import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serve.telemetry.prometheus_text import Window, increases, parse, quantile

BOUNDS = (0.1, 0.2, 0.5, 1.0, math.inf)


def cumulative(*counts: float) -> dict[float, float]:
    return dict(zip(BOUNDS, counts, strict=True))


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.5, (10, 10, 10, 10, 10), 0.05),  # the lowest bucket begins at zero
        (0.5, (0, 10, 10, 10, 10), 0.15),  # empty buckets below are stepped over
        (0.5, (5, 10, 10, 10, 10), 0.1),  # exactly at a bound
        (0.95, (0, 0, 90, 100, 100), 0.75),  # half into 0.5..1
        (0.25, (4, 4, 4, 8, 8), 0.05),  # an empty bucket in the middle
        (0.99, (0, 0, 0, 0, 7), 1.0),  # above every bound: the highest there is
        (0.99, (0, 5, 5, 5, 10), 1.0),
        (1.0, (0, 5, 5, 5, 5), 0.2),
        (0.9, (2, 8, 3, 10, 10), 0.75),  # one bucket was reset alone: as if it had not fallen
    ],
)
def test_a_quantile_is_linear_in_its_bucket_as_in_prometheus(q, counts, expected):
    assert quantile(q, cumulative(*counts)) == pytest.approx(expected)


def test_no_observation_has_no_quantile():
    assert quantile(0.5, {}) is None
    assert quantile(0.5, cumulative(0, 0, 0, 0, 0)) is None


def test_a_quantile_is_within_its_bucket_of_the_observations_own():
    draw = random.Random(7)
    for _ in range(50):
        values = sorted(draw.gammavariate(2, 0.15) for _ in range(draw.randint(1, 200)))
        counts = {bound: float(sum(value <= bound for value in values)) for bound in BOUNDS}
        for q in (0.05, 0.5, 0.95):
            own = values[math.ceil(q * len(values)) - 1]
            upper = next(bound for bound in BOUNDS if own <= bound)
            lower = max((bound for bound in (0.0, *BOUNDS) if bound < own), default=0.0)
            assert lower <= quantile(q, counts) <= (1.0 if upper == math.inf else upper)


class Target:
    """A registry that can be restarted."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("requests", "", ["by", "of"], registry=self.registry)
        self.histogram = Histogram("took_seconds", "", ["by"], buckets=BOUNDS, registry=self.registry)

    def page(self):
        return parse(generate_latest(self.registry).decode())


@pytest.fixture
def target() -> Target:
    return Target()


def test_counts_rates_means_and_quantiles_are_of_the_interval_only(target):
    window = Window(10)
    target.counter.labels("a", "x").inc(100)
    target.histogram.labels("a").observe(0.9)
    window.add(0, target.page())
    target.counter.labels("a", "x").inc(6)
    target.counter.labels("b", "x").inc(2)
    for value in (0.12, 0.15, 0.18):
        target.histogram.labels("a").observe(value)
    target.histogram.labels("b").observe(0.05)
    window.add(4, target.page())
    known = window.interval()
    assert known.count("requests_total") == 8
    assert known.count("requests_total", by="a") == 6
    assert known.count_by("by", "requests_total") == {"a": 6, "b": 2}
    assert known.rate("requests_total", by="a", of="x") == 1.5
    assert known.mean("took_seconds", by="a") == pytest.approx(0.15)
    assert known.mean("took_seconds", by="c") is None
    assert known.quantile(0.5, "took_seconds", by="a") == pytest.approx(0.15)
    assert known.quantile(0.5, "took_seconds") == pytest.approx(0.1 + 0.1 * (2 - 1) / 3), "over both"
    assert known.quantile(0.5, "took_seconds", by="c") is None
    assert known.label_values("by", "requests_total", "nothing") == {"a", "b"}
    assert known.value("requests_total", by="a") == 106
    assert known.value("requests_total", by="c") is None


def test_a_counter_that_fell_or_is_new_counts_from_zero(target):
    target.counter.labels("a", "x").inc(100)
    target.histogram.labels("a").observe(0.9)
    target.histogram.labels("a").observe(0.9)
    window = Window(10)
    window.add(0, target.page())
    target.counter.labels("a", "x").inc(5)
    window.add(1, target.page())
    target.restart()
    target.counter.labels("a", "x").inc(7)
    target.counter.labels("b", "x").inc(1)
    target.histogram.labels("a").observe(0.05)
    window.add(2, target.page())
    known = window.interval()
    assert known.count_by("by", "requests_total") == {"a": 12, "b": 1}
    assert known.quantile(0.5, "took_seconds", by="a") == pytest.approx(0.05)
    assert known.seconds == 2


def test_an_unchanged_counter_rose_by_nothing():
    one = {"requests_total": {frozenset(): 5.0}}
    assert increases(one, one) == {"requests_total": {frozenset(): 0.0}}


def test_the_window_slides(target):
    window = Window(10)
    for second in range(31):
        window.add(second, target.page())
        target.counter.labels("a", "x").inc(second)  # in the second after
    known = window.interval()
    assert known.seconds == 10
    assert known.count("requests_total") == sum(range(20, 30))
    assert window.interval(2).count("requests_total") == 29


def test_looks_further_apart_than_the_window_still_make_an_interval(target):
    window = Window(5)
    for second in (0, 60, 120):
        window.add(second, target.page())
        target.counter.labels("a", "x").inc(30)
    assert window.interval().seconds == 60
    assert window.interval().rate("requests_total") == 0.5


def test_one_page_makes_no_rate(target):
    window = Window(5)
    assert window.interval().rate("requests_total") is None
    target.counter.labels("a", "x").inc()
    window.add(3, target.page())
    assert window.interval().rate("requests_total") is None
    assert window.interval().value("requests_total") == 1


def test_what_is_no_page_is_a_value_error():
    with pytest.raises(ValueError, match="invalid metric name"):
        parse("<html><body>503</body></html>")
