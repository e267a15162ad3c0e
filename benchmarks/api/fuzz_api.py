"""Fuzz the gateway's API with requests that schemathesis generates from the OpenAPI description: `python -m benchmarks.api.fuzz_api`.

The gateway runs alone in its process, on an engine that answers at once and a scripted retrieval. Rounds of schemathesis (its
examples, coverage and fuzzing phases, each round with another seed) go on until `--requests` were sent; meanwhile the gateway's
memory is sampled. Every kind of failure is recorded with the command that reproduces it.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psutil
import schemathesis
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from benchmarks.api.fuzz_gateway import KEY
from benchmarks.lib.memory_slope import slope
from benchmarks.lib.processes import NotStarted, System, command, free_ports, python
from benchmarks.reporting import plots
from benchmarks.reporting.results import save
from serve.gateway.openapi import operations

AIM = {"failures": 0, "server_errors": 0}
#: Left out: `object_level_authorization`, `use_after_free` and `ensure_resource_availability` need resources that persist, and
#: the scripted retrieval keeps none (tenants are held apart by tests/integration/test_store.py).
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
_LEFT_OUT = ("object_level_authorization", "use_after_free", "ensure_resource_availability")
#: Rejections of bodies that are valid by the description.
_BEYOND_SCHEMA = ("context_length_exceeded", "invalid_dimensions", "too_many_sequences")
_ROUND = 200  # fuzzed cases of an operation in a round
_OPERATIONS = len(operations())
_WARM_UP = 0.2  # of the requests: until caches, connections and the allocator's pools are filled
_LONG = 20_000  # requests; before that, memory still settles
_EVERY_S = 1.0  # between two samples of the memory
_FLAT_MB = 1.0  # growth per 100,000 requests below this counts as none


@dataclass(slots=True)
class Tally:
    """Counts of requests, statuses and failures so far."""

    requests: int = 0  # sent; the other counts follow when their scenario is over
    statuses: Counter[int] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)  # by kind and operation: the first one's report
    errors: list[str] = field(default_factory=list)  # of schemathesis itself

    @property
    def server_errors(self) -> int:
        """Answers with a 5xx status."""
        return sum(count for status, count in self.statuses.items() if status >= 500)

    def add(self, recorder: ScenarioRecorder) -> None:
        """Count a scenario: the requests of one operation in one phase."""
        for interaction in recorder.interactions.values():
            self.operations[recorder.label] += 1
            if interaction.response is None:
                self.failures.setdefault(f"{recorder.label}: no response", "")
            else:
                self.statuses[interaction.response.status_code] += 1
        for checks in recorder.checks.values():
            for check in checks:
                self.checks[check.name] += 1
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    name = f"{failure.operation}: {failure.title}"
                    self.failures.setdefault(name, f"{failure.message}\n{check.failure_info.code_sample}")


@contextmanager
def fuzzed_gateway() -> Iterator[tuple[str, System]]:
    """Start a gateway to fuzz; yield its URL and process."""
    engine_port, port = free_ports(2)
    engine, url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{port}"
    arguments = ("--port", str(port), "--engine", engine)
    with (
        System("fuzz-engine", python("-m", "benchmarks.api.fuzz_engine", "--port", str(engine_port))) as one,
        System("fuzz-gateway", python("-m", "benchmarks.api.fuzz_gateway", *arguments)) as gateway,
    ):
        one.wait(lambda: httpx.get(f"{engine}/").status_code == 404, 60)
        gateway.wait(lambda: httpx.get(f"{url}/healthz").status_code == 200, 60)
        yield url, gateway


def fuzz(
    url: str, tally: Tally, *, cases: int, seed: int, phases: Sequence[str], on_request: Callable[[], None]
) -> None:
    """Run one round, counted in `tally`: up to `cases` fuzzed cases of each operation. `on_request` is called after each request."""
    config = schemathesis.Config.from_dict(
        {
            "base-url": url,
            "auth": {"openapi": {"bearer": {"bearer": KEY}}},
            "continue-on-failure": True,
            "request-timeout": 30,
            "seed": seed,
            "generation": {
                "max-examples": cases,
                "with-security-parameters": False,  # they would only be rejected with 401
                "allow-extra-parameters": False,  # unknown headers are not an error
                "database": "none",
                "no-shrink": True,
            },
            "checks": {
                **{name: {"enabled": False} for name in _LEFT_OUT},
                "positive_data_acceptance": {"expected-statuses": [200, 404, 413, 422, 429]},
                "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 413, 422, 429]},
            },
            "phases": {
                **{name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing")},
                "stateful": {"enabled": False},
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)

    @schema.hook("filter_failure")
    def _of_the_api(context: object, failure: object, case: schemathesis.Case, response: schemathesis.Response) -> bool:
        return response.status_code != 400 or not _beyond_schema(response.json()["error"]["code"], case.body)

    @schema.hook("after_call")
    def _count(context: object, case: object, response: object) -> None:
        tally.requests += 1
        on_request()

    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            tally.add(event.recorder)
        elif isinstance(event, events.NonFatalError):
            tally.errors.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            tally.errors.append(str(event.exception))


def _beyond_schema(code: str, body: object) -> bool:
    """Whether a rejection depends on more than an OpenAPI description can express: the deployment, or a header together with a body."""
    grounded_completion = code == "invalid_retrieval" and isinstance(body, dict) and "prompt" in body
    not_n = code in ("invalid_value", "unsupported_value") and isinstance(body, dict) and "best_of" in body
    return code in _BEYOND_SCHEMA or grounded_completion or not_n


@dataclass(slots=True)
class Memory:
    """Samples of the gateway's resident memory during the run."""

    process: psutil.Process
    samples: list[tuple[float, int, float]] = field(default_factory=list)  # seconds, requests, MB
    started: float = field(default_factory=time.monotonic)

    def sample(self, requests: int) -> None:
        """Take a sample, unless the last one is too recent."""
        now = time.monotonic() - self.started
        if not self.samples or now - self.samples[-1][0] >= _EVERY_S:
            self.samples.append((round(now, 2), requests, round(self.process.memory_info().rss / 1e6, 3)))


def growth(samples: Sequence[tuple[float, int, float]], total: int) -> dict[str, object] | None:
    """Memory growth after the warm-up in MB per 100,000 requests; None with too few requests or samples."""
    late = [(float(requests), mb) for _, requests, mb in samples if requests >= _WARM_UP * total]
    if total < _LONG or (found := slope(late)) is None:
        return None
    low, high = found.low * 1e5, found.high * 1e5
    return {
        "mb_per_100k": round(found.slope * 1e5, 3),
        "ci95": [round(low, 3), round(high, 3)],
        "flat": low <= _FLAT_MB,
        "samples": found.points,
    }


def bar(done: int, total: int, elapsed_s: float) -> str:
    """Progress line: bar, requests, rate, time left."""
    share = min(done / total, 1.0)
    left_s = elapsed_s / share * (1 - share) if share else 0.0
    filled = round(30 * share)
    rate = done / elapsed_s if elapsed_s else 0.0
    clock = f"{int(left_s) // 60}:{int(left_s) % 60:02d}"
    return f"[{'#' * filled}{'.' * (30 - filled)}] {done:,}/{total:,} requests, {rate:.0f}/s, about {clock} left"


def run(requests: int, seed: int) -> dict[str, object]:
    """Send at least `requests` and return the result."""
    tally, number = Tally(), 0
    with fuzzed_gateway() as (url, gateway):
        memory = Memory(psutil.Process(gateway.pid))
        started = time.monotonic()
        last_line = 0.0

        def on_request() -> None:
            nonlocal last_line
            memory.sample(tally.requests)
            now = time.monotonic()
            if now - last_line > (0.2 if sys.stdout.isatty() else 15):
                last_line = now
                end = "\r" if sys.stdout.isatty() else "\n"
                print(
                    f"{bar(tally.requests, requests, now - started)}, {len(tally.failures)} kinds of failure",
                    end=end,
                    flush=True,
                )

        while tally.requests < requests:
            # The coverage phase is the same in every round, so it runs once. The last round is only as long as needed.
            phases = ("examples", "coverage", "fuzzing") if number == 0 else ("fuzzing",)
            left = (requests - tally.requests) // _OPERATIONS + 1
            fuzz(url, tally, cases=min(_ROUND, left), seed=seed + number, phases=phases, on_request=on_request)
            number += 1
        print()
        took_s = time.monotonic() - started
    return {
        "requests": tally.requests,
        "rounds": number,
        "seed": seed,
        "requests_per_s": round(tally.requests / took_s, 1),
        "schemathesis": schemathesis.__version__,
        "statuses": {str(status): tally.statuses[status] for status in sorted(tally.statuses)},
        "server_errors": tally.server_errors,
        "operations": dict(sorted(tally.operations.items())),
        "checks": {name: tally.checks[name] for name in CHECKS},
        "checks_left_out": list(_LEFT_OUT),
        "failures": tally.failures,
        "errors_of_the_tool": tally.errors,
        "aims": AIM,
        "met": not tally.failures and not tally.server_errors and not tally.errors,
        "memory": {"growth": growth(memory.samples, requests), "samples": memory.samples},
    }


def main() -> None:
    """Run the benchmark, save and plot the result, print the failures. Exit code 1: something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000, help="at least as many; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; default %(default)s")
    args = parser.parse_args()
    with command((NotStarted,), "nothing was saved"):
        result = run(args.requests, args.seed)
        save("fuzz-api", result)
        plots.fuzz_api(result)
    print(", ".join(f"{count:,} × {status}" for status, count in result["statuses"].items()))  # type: ignore[attr-defined]
    print(_said_of_memory(result["memory"]["growth"]))  # type: ignore[index]
    for name, report in result["failures"].items():  # type: ignore[attr-defined]
        print(f"\nFAILED {name}\n{report}")
    for error in result["errors_of_the_tool"]:  # type: ignore[attr-defined]
        print(f"\nERROR {error}")
    if not result["met"]:
        sys.exit(1)
    print(f"{result['requests']:,} requests: no failure")


def _said_of_memory(growth: dict[str, object] | None) -> str:
    if growth is None:
        return f"memory: fewer than {_LONG:,} requests are too few to decide whether it grows"
    low, high = growth["ci95"]  # type: ignore[misc]
    verdict = "flat" if growth["flat"] else "GROWS"
    return f"memory: {verdict}, {growth['mb_per_100k']} MB in 100,000 requests (95% interval {low} to {high})"


if __name__ == "__main__":
    main()
