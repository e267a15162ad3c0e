"""Pages of a platform's metrics port, and what happened between them: rates and quantiles as Prometheus has them."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Series = frozenset[tuple[str, str]]  # its labels
Samples = Mapping[str, Mapping[Series, float]]  # by name, such as gearbox_ttft_seconds_bucket


class ScrapeError(Exception):
    """There is no page, or it is none of Gearbox; the message is one line."""


def scrape(client: httpx.Client, url: str) -> Samples:
    """The page at `url`. Raises `ScrapeError`."""
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


def parse(text: str) -> Samples:
    """The samples of a page in Prometheus' text format. Raises `ValueError`."""
    samples: dict[str, dict[Series, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return dict(samples)


def increases(before: Samples, now: Samples) -> Samples:
    """What each counter rose by. One that fell began anew, and one that was not there began: both count from zero."""
    found: dict[str, dict[Series, float]] = {}
    for name, values in now.items():
        earlier = before.get(name, {})
        found[name] = {
            series: value - was if value >= (was := earlier.get(series, 0.0)) else value
            for series, value in values.items()
        }
    return found


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The `q`-quantile of a histogram, linear inside its bucket; None without an observation.

    As Prometheus' `histogram_quantile`: the lowest bucket begins at zero, and what is above the highest finite bound
    is given as that bound.

    Args:
        buckets: count of observations at or below each upper bound, +Inf among them.
    """
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    rank = q * total
    lower, below = 0.0, 0.0
    for upper in sorted(buckets):
        count = max(buckets[upper], below)  # a bucket that began anew alone must not make counts fall
        if count >= rank and count > below:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


@dataclass(frozen=True, slots=True)
class Interval:
    """What counters rose by in `seconds`, and the values at its end. A single page has 0 seconds and no rates."""

    seconds: float
    counts: Samples
    values: Samples

    def count(self, name: str, **labels: str) -> float:
        """What the series with these labels rose by, summed."""
        wanted = frozenset(labels.items())
        return sum(count for series, count in self.counts.get(name, {}).items() if wanted <= series)

    def count_by(self, label: str, name: str) -> dict[str, float]:
        """The same for each value of `label`, those that did not rise among them."""
        counts: dict[str, float] = defaultdict(float)
        for series, count in self.counts.get(name, {}).items():
            counts[dict(series)[label]] += count
        return dict(counts)

    def rate(self, name: str, **labels: str) -> float | None:
        """Per second."""
        return self.count(name, **labels) / self.seconds if self.seconds else None

    def mean(self, name: str, **labels: str) -> float | None:
        """Of a histogram's observations."""
        count = self.count(f"{name}_count", **labels)
        return self.count(f"{name}_sum", **labels) / count if count else None

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Of a histogram's observations, over all series with these labels."""
        wanted = frozenset(labels.items())
        buckets: dict[float, float] = defaultdict(float)
        for series, count in self.counts.get(f"{name}_bucket", {}).items():
            if wanted <= series:
                buckets[float(dict(series)["le"])] += count
        return quantile(q, buckets)

    def value(self, name: str, **labels: str) -> float | None:
        """A gauge now; None where it has no such series."""
        wanted = frozenset(labels.items())
        return next((value for series, value in self.values.get(name, {}).items() if wanted <= series), None)

    def label_values(self, label: str, *names: str) -> set[str]:
        """The values that `label` has on the page."""
        series = (dict(series) for name in names for series in self.values.get(name, {}))
        return {labels[label] for labels in series if label in labels}


class Window:
    """The pages of the last `seconds`, never fewer than the last two."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: deque[tuple[float, Samples]] = deque()  # each with the increases since the page before
        self._values: Samples = {}

    def add(self, at: float, samples: Samples) -> None:
        """A page that was had at `at`, in seconds of any steady clock."""
        self._pages.append((at, increases(self._values, samples) if self._pages else {}))
        self._values = samples
        while len(self._pages) > 2 and self._pages[1][0] <= at - self._seconds:
            self._pages.popleft()

    def interval(self, pages: int = 0) -> Interval:
        """Over the whole window, or its last `pages` only."""
        chosen = list(self._pages)[-pages:]
        counts: dict[str, dict[Series, float]] = {}
        for _, rose in chosen[1:]:
            for name, by_series in rose.items():
                total = counts.setdefault(name, {})
                for series, count in by_series.items():
                    total[series] = total.get(series, 0.0) + count
        return Interval(chosen[-1][0] - chosen[0][0] if chosen else 0.0, counts, self._values)
