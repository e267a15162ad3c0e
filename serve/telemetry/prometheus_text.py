"""Scrape a platform's metrics port and compute rates and quantiles between scrapes, as Prometheus does."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Series = frozenset[tuple[str, str]]  # labels of a series
Samples = Mapping[str, Mapping[Series, float]]  # by sample name, such as gearbox_ttft_seconds_bucket


class ScrapeError(Exception):
    """The scrape failed, or the page is not of a Gearbox gateway; the message is one line."""


def scrape(client: httpx.Client, url: str) -> Samples:
    """Scrape the metrics at `url`. Raises `ScrapeError`."""
    try:
        answer = client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ScrapeError(f"no answer from {url}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise ScrapeError(f"{url} is not a Gearbox metrics page: it answered {answer.status_code}")
    try:
        samples = parse(answer.text)
    except ValueError as error:
        raise ScrapeError(f"{url} is not a Gearbox metrics page: it is not in Prometheus' text format") from error
    if not any(name.startswith("gearbox_") for name in samples):
        raise ScrapeError(f"{url} is not a Gearbox metrics page: it has no gearbox_ metric")
    return samples


def parse(text: str, names: tuple[str, ...] = ()) -> Samples:
    """Parse Prometheus' text format, or only the lines that begin with one of `names`. Raises `ValueError`."""
    if names:
        text = "\n".join(line for line in text.split("\n") if line.startswith(names))
    samples: dict[str, dict[Series, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return dict(samples)


def increases(before: Samples, now: Samples) -> Samples:
    """The increase of each counter. Counters that were reset or are new count from zero."""
    result: dict[str, dict[Series, float]] = {}
    for name, values in now.items():
        earlier = before.get(name, {})
        result[name] = {
            series: value - was if value >= (was := earlier.get(series, 0.0)) else value
            for series, value in values.items()
        }
    return result


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The `q`-quantile of a histogram, linear inside its bucket; None without an observation.

    As Prometheus' `histogram_quantile`: the lowest bucket starts at zero, and quantiles above the highest finite bound
    are that bound.

    Args:
        buckets: count of observations at or below each upper bound, +Inf among them.
    """
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    rank = q * total
    lower, below = 0.0, 0.0
    for upper in sorted(buckets):
        count = max(buckets[upper], below)  # keep cumulative counts monotonic if a single bucket was reset
        if count >= rank and count > below:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


@dataclass(frozen=True, slots=True)
class Interval:
    """Counter increases over `seconds`, and the values at its end. With a single scrape, `seconds` is 0: no rates."""

    seconds: float
    counts: Samples
    values: Samples

    def count(self, name: str, **labels: str) -> float:
        """The summed increase of all series with these labels."""
        selector = frozenset(labels.items())
        return sum(count for series, count in self.counts.get(name, {}).items() if selector <= series)

    def count_by(self, label: str, name: str) -> dict[str, float]:
        """The summed increase for each value of `label`, including zeros."""
        counts: dict[str, float] = defaultdict(float)
        for series, count in self.counts.get(name, {}).items():
            counts[dict(series)[label]] += count
        return dict(counts)

    def rate(self, name: str, **labels: str) -> float | None:
        """The increase per second."""
        return self.count(name, **labels) / self.seconds if self.seconds else None

    def mean(self, name: str, **labels: str) -> float | None:
        """The mean of a histogram's observations."""
        count = self.count(f"{name}_count", **labels)
        return self.count(f"{name}_sum", **labels) / count if count else None

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """The `q`-quantile of a histogram's observations, over all series with these labels."""
        selector = frozenset(labels.items())
        buckets: dict[float, float] = defaultdict(float)
        for series, count in self.counts.get(f"{name}_bucket", {}).items():
            if selector <= series:
                buckets[float(dict(series)["le"])] += count
        return quantile(q, buckets)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of a gauge; None without such a series."""
        selector = frozenset(labels.items())
        return next((value for series, value in self.values.get(name, {}).items() if selector <= series), None)

    def label_values(self, label: str, *names: str) -> set[str]:
        """All values of `label` in the last scrape."""
        series = (dict(series) for name in names for series in self.values.get(name, {}))
        return {labels[label] for labels in series if label in labels}


class Window:
    """The scrapes of the last `seconds`, at least the last two."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: deque[tuple[float, Samples]] = deque()  # (time, increases since the previous scrape)
        self._values: Samples = {}

    def add(self, at: float, samples: Samples) -> None:
        """Add a scrape made at `at`, in seconds of any monotonic clock."""
        self._pages.append((at, increases(self._values, samples) if self._pages else {}))
        self._values = samples
        while len(self._pages) > 2 and self._pages[1][0] <= at - self._seconds:
            self._pages.popleft()

    def interval(self, pages: int = 0) -> Interval:
        """The interval over the whole window, or over its last `pages` scrapes."""
        chosen = list(self._pages)[-pages:]
        counts: dict[str, dict[Series, float]] = {}
        for _, rose in chosen[1:]:
            for name, by_series in rose.items():
                total = counts.setdefault(name, {})
                for series, count in by_series.items():
                    total[series] = total.get(series, 0.0) + count
        return Interval(chosen[-1][0] - chosen[0][0] if chosen else 0.0, counts, self._values)
