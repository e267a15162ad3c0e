"""PromQL expressions of the panels: sums of rates first, then quantiles and ratios of them, never averages of averages."""

MODEL = 'model=~"$model"'
VARIANT = f'{MODEL}, variant=~"$variant"'
BY_VARIANT = "model, variant"
RATE = "$__rate_interval"
RANGE = "$__range"


def rate(counter: str, by: str, where: str, window: str = RATE) -> str:
    """Events per second, summed by the labels `by`."""
    return f"{_sum(by)}(rate({counter}{{{where}}}[{window}]))"


def count(counter: str, by: str, where: str) -> str:
    """Number of events in the dashboard's time range, for tables and stat panels."""
    return f"{_sum(by)}(increase({counter}{{{where}}}[{RANGE}]))"


def share(counter: str, by: str, where: str, part: str, window: str = RATE) -> str:
    """Share of the events that also match `part`. A missing series of `part` counts as zero, not as no data."""
    all_of_them = rate(counter, by, where, window)
    return f"({rate(counter, by, f'{where}, {part}', window)} or 0 * {all_of_them}) / {all_of_them}"


def quantile(q: float, histogram: str, by: str, where: str, window: str = RATE) -> str:
    """The `q`-quantile of all observations in the series that are summed."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', f'le, {by}' if by else 'le', where, window)})"


def mean(histogram: str, by: str, where: str, window: str = RATE) -> str:
    """Mean of a histogram's observations: sum divided by count."""
    return f"{rate(f'{histogram}_sum', by, where, window)} / {rate(f'{histogram}_count', by, where, window)}"


def gauge(name: str, by: str, where: str) -> str:
    """A gauge that every gateway node reports with the same value: the maximum, not the sum."""
    return f"max by ({by}) ({name}{{{where}}})"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
