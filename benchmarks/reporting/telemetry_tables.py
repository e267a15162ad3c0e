"""Tables of telemetry overhead."""

from benchmarks.reporting.cells import Result, machine_line, median_range, table
from benchmarks.reporting.plots import OBSERVING_NAMES


def observing(result: Result) -> str:
    """Overhead of each kind of telemetry over none, and its share of a real request."""
    rows = []
    for name, system in result["systems"].items():
        points, real = system["points"], result["real"].get(name)
        cells = [median_range(points[at]["per_s"], 0) for at in ("unary", "saturated")]
        cells.append(median_range(points["unary"]["whole_us"], 0))
        if real is None:
            rows.append([OBSERVING_NAMES[name], *cells, *[""] * 5])
            continue
        added = points["first"]["added_p50_ms"]
        first_us = {key: added[key] * (1 if key == "n" else 1000) for key in added}
        costs = [median_range(system["request_us"], 0), median_range(system["token_us"], 1), median_range(first_us, 0)]
        scrape = median_range(result["scrapes"][name]["cpu_ms"], 1)
        shares = " / ".join(f"{row['time']:.2%}" for row in real.values())
        rows.append([OBSERVING_NAMES[name].replace("\n", " "), *cells, *costs, scrape, shares])
    head = ["telemetry", "requests/s", "tokens/s", "µs CPU a request", "added, µs", "added a token, µs"]
    head += ["added to the first token, µs", "ms CPU a scrape", "share of a real request"]
    size, real = result["size"], next(iter(result["real"].values()))
    tokens = next(iter(real.values()))["tokens"]
    worst = {name: max(max(row["time"], row["cpu"]) for row in of.values()) for name, of in result["real"].items()}
    verdict = "; ".join(f"{OBSERVING_NAMES[name]}: {share:.2%}".replace("\n", " ") for name, share in worst.items())
    aim_verdict = "under" if max(worst.values()) < result["aim"] else "NOT under"
    arrived = result["systems"]["traces"]["traces_arrived"]
    note = (
        f"Four gateways before one mock engine, loaded in turn; medians [smallest, largest] of {size['rounds'] * size['starts']} "
        f"rounds over {size['starts']} starts, differences within a round. Requests: 8 connections, not streamed. Tokens/s: 8 "
        f"streams at full speed. Added a token: 32 streams of {size['tokens']} with one token each 20 ms, the request's "
        "own part subtracted. First token: one stream at a time. CPU of a request: all processes on its path; added: the "
        f"gateway's. Metrics are scraped once a second meanwhile; the cost of scrapes is not part of the other columns. {arrived['median']:.0%} of "
        f"the traces arrived at the collector (in the worst round {arrived['min']:.0%}).\n\n"
        f"The last column is computed, not measured: all that is added to a request and its {tokens} tokens, over what such a "
        f"request took on `full` with {' / '.join(real)} streams (the engine table above). Of that time, or of the machine's cores "
        f"at that rate of requests with a scrape each 15 s, whichever is more: {verdict}; {aim_verdict} the aim of {result['aim']:.0%}."
    )
    return f"{table(head, rows)}\n\n{note}\n{machine_line(result)}"


def observing_engine(result: Result) -> str:
    """A gateway without telemetry and one with all of it, on the real engine."""
    rows = []
    for streams, off in result["systems"]["off"].items():
        every = result["systems"]["traces"][streams]
        cells = [median_range(row[key], 0) for key in ("ttft_p50_ms", "tokens_per_s") for row in (off, every)]
        rows.append([streams, *cells, median_range(every["added_ttft_ms"], 1), median_range(every["ratio"], 3)])
    head = ["streams", "TTFT p50 ms, no telemetry", "all", "tok/s, no telemetry", "all"]
    head += ["added TTFT ms", "ratio of tok/s"]
    note = (
        "Measured on the real engine: a gateway without telemetry and one with metrics, log lines and every request traced, "
        f"before the same replica of `full`, in turn; {result['rounds']} rounds, differences within a round."
    )
    return f"{note}\n\n{table(head, rows)}\n{machine_line(result)}"
