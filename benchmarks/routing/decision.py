"""Measure the time of a decision by the number of variants, with a profile: `python -m benchmarks.routing.decision`.

Every variant has 16 sequences in flight, as many as the limits allow, and requests wait in the admission: a decision is that of
an arriving request, pumping is what a completion costs that starts nothing. Between two of either, the load of one variant
changes; where nothing fits, that of every variant.
"""

import cProfile
import itertools
import pstats
import random
import re
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.lib.processes import command
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.routing.simulate import GEARS, catalog
from benchmarks.routing.workloads import ARRIVALS, mixed, relative
from serve.budget import Budget
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import Router
from serve.routing.waiting_queue import Waiting

COUNTS = (8, 100)
AIMS_US = {"8": 60.0, "100": 600.0}
IN_FLIGHT, WAITING = 16, 32  # sequences at each variant, requests in the gateway
REPEATS, CALLS = 15, 400
IMPOSSIBLE = Budget(ttft_ms=1, tpot_ms=1, e2e_ms=1)  # every variant is checked, then the nearest miss is searched


def variants(count: int) -> list[Variant]:
    """`count` variants with real cards, each with `IN_FLIGHT` sequences."""
    drawn = random.Random(0)
    selected = [catalog([name])[0] for name in itertools.islice(itertools.cycle(GEARS), count)]
    for variant in selected:
        variant.live.update_from_engines(1, 0, 0, 0.0)
        for _ in range(IN_FLIGHT):
            variant.live.on_dispatch(drawn.randrange(20, 400), 1, drawn.randrange(10, 100))
    return selected


def requests(count: int) -> list[tuple[Budget, Features]]:
    """Budgets and lengths of the request mix of the other benchmarks."""
    full = catalog(["full"])[0].profile
    trace = itertools.islice(mixed(ARRIVALS["poisson"](1.0, 0), relative(full), 0), count)
    degrade = {"on_no_candidate": "degrade"}
    return [(one.budget.model_copy(update=degrade), Features(one.prompt_tokens, one.output_tokens)) for one in trace]


def crowded(catalog: Sequence[Variant], mix: Sequence[tuple[Budget, Features]]) -> Admission:
    """An admission in which `WAITING` requests wait, as every engine runs what the time per token of the mix allows."""
    admission = Admission(Router(WithinBudget()))
    admission.roll(catalog, 0.0)
    for budget, _ in mix:
        admission.class_of(budget)
    paced = [(budget, features) for budget, features in mix if budget.tpot_ms is not None]
    for budget, features in itertools.islice(itertools.cycle(paced), 100 * WAITING):
        if len(admission) == WAITING:
            return admission
        admission.submit(catalog, Waiting(budget, features, 0.0, lambda _: None), 0.0)
    raise AssertionError("no request waits: the variants have room")


def serve(variant: Variant, features: Features) -> None:
    """A request begins at `variant` as another ends."""
    variant.live.on_dispatch(features.prompt_tokens, 1, features.output_tokens)
    variant.live.on_first_token(features.prompt_tokens)
    variant.live.on_complete()


def timed(work: Callable[[], object], repeats: int, calls: int) -> list[float]:
    """Microseconds per call, one number for each repeat."""
    durations_us = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        durations_us.append((time.perf_counter() - started) / calls * 1e6)
    return durations_us


def measure() -> dict[str, object]:
    """Measure all numbers of variants. Returns the result without the machine."""
    progress = Progress([(f"{count} variants", count * REPEATS * CALLS * 6e-6) for count in COUNTS])
    mix = requests(CALLS)
    rows = {}
    shares: dict[str, float] = {}
    for count in COUNTS:
        progress.step(f"{count} variants")
        catalog, router = variants(count), Router(WithinBudget())
        admission = crowded(catalog, mix)

        def decide(catalog: Sequence[Variant] = catalog, admission: Admission = admission) -> None:
            for budget, features in mix:
                decision = admission.decide(catalog, Waiting(budget, features, 0.0, lambda _: None), 0.0)
                serve(decision.variant, features)

        def pump(catalog: Sequence[Variant] = catalog, admission: Admission = admission) -> None:
            for variant, (_, features) in zip(itertools.cycle(catalog), mix):
                serve(variant, features)
                admission.pump(catalog, 0.0)

        def nothing_fits(catalog: Sequence[Variant] = catalog, router: Router = router) -> None:
            for _, features in mix:
                for variant in catalog:
                    variant.live.usual_prompt += 1e-6
                router.decide(catalog, IMPOSSIBLE, features)

        predictions = [router.decide(catalog, *one).chosen.prediction for one in mix]

        def observe(predictions: Sequence[object] = predictions) -> None:
            for one in predictions:
                one.observe(*one.expected)  # type: ignore[attr-defined]

        decide()
        rows[str(count)] = {
            "decide_us": spread(timed(decide, REPEATS, CALLS), 1),
            "pump_us": spread(timed(pump, REPEATS, CALLS), 1),
            "nothing_fits_us": spread(timed(nothing_fits, REPEATS, CALLS), 1),
            "observe_us": spread(timed(observe, REPEATS, CALLS), 1),
        }
        if count == COUNTS[0]:
            shares = _shares(decide)
    return {"variants": rows, "aims_us": AIMS_US, "shares": shares}


def _shares(work: Callable[[], object]) -> dict[str, float]:
    """Share of self time of each function of the router, largest first."""
    profile = cProfile.Profile()
    profile.runcall(work)
    own: dict[str, float] = {}
    for (file, _, function), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file == __file__:
            continue
        name = re.sub(" of type object at 0x[0-9a-f]+", "", function)
        own[name] = own.get(name, 0.0) + row[2]
    total = sum(own.values())
    top = sorted(own.items(), key=lambda one: -one[1])[:6]
    return {name: round(seconds / total, 3) for name, seconds in top}


def main() -> int:
    """The command; returns its exit code."""
    with command((), "nothing was saved"):
        result = measure()
    for count, row in result["variants"].items():  # type: ignore[attr-defined]
        print(
            f"{count} variants: {row['decide_us']['median']} µs a decision, aim {AIMS_US[count]:.0f}; "
            f"{row['pump_us']['median']} µs for a completion"
        )
    save("decision", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
