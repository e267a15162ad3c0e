"""Goodput as vLLM's own client counts it, of the gateway and of the same engine bare: `python -m benchmarks.routing.bench_serve`.

`vllm bench serve --goodput` sends the same traces to the platform that `gearbox up` has running (or to one started for it), and to
`vllm serve` with the weights of `full`, started beside it; one at a time, a rate after the other. All requests have the
budget `BUDGET`. Of the gateway two are measured: `gearbox` may use every variant, `gearbox-full` only those with the quality of `full`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.platform_session import NoPlatform, cards, headers, platform
from benchmarks.lib.processes import NotStarted, command
from benchmarks.lib.vllm_bench import Timed, bench_goodput
from benchmarks.reporting import routing_plots
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.routing.goodput_cells import make_trace, seed_of
from benchmarks.routing.workloads import full_load
from benchmarks.systems.engine_systems import serving
from benchmarks.systems.full_weights import CONFIG, NoWeights, full_weights
from serve.card import Card, Profile

BUDGET = {"ttft_ms": 800, "tpot_ms": 90, "e2e_ms": 8000}
LIMITS_MS = {"ttft": BUDGET["ttft_ms"], "tpot": BUDGET["tpot_ms"], "e2el": BUDGET["e2e_ms"]}
LOADS, ROUNDS, PUBLISHED, SECONDS = (0.5, 1.0, 2.0, 4.0), 5, 2, 30.0
WARM_S, WARM_LOAD = 10.0, 0.5
BARE = "bare"

Send = Callable[["Target", Sequence[Timed]], Mapping[str, float]]


@dataclass(slots=True, frozen=True)
class Target:
    """A server that is measured, and what its requests carry."""

    name: str
    url: str
    model: str
    extra_body: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def targets(gateway: str, model: str, best_quality: float, bare: str) -> list[Target]:
    """The gateway with all variants and with the best alone, and the bare engine."""
    budget: dict[str, object] = {**BUDGET, "on_no_candidate": "reject"}
    own = {"gearbox": budget, "gearbox-full": {**budget, "min_quality": best_quality}}
    through = [Target(name, gateway, f"{model}@best", {"budget": limits}, headers()) for name, limits in own.items()]
    return [Target(BARE, bare, model), *through]


def trace(per_s: float, seconds: float, *seed: object) -> list[Timed]:
    """A Poisson trace with the lengths of the routing benchmarks."""
    requests = make_trace("poisson", per_s, seconds, seed_of("bench-serve", *seed))
    return [Timed(one.at / 1000, one.prompt_tokens, one.output_tokens) for one in requests]


def measure(
    compared: Sequence[Target], full: Profile, loads: Sequence[float], rounds: int, seconds: float, send: Send,
    save_round: Callable[[dict[str, Any], int], None],
) -> None:  # fmt: skip
    """Measure all targets at all loads; `save_round` gets the result and the number of rounds after each."""
    per_s = full_load(full, make_trace("poisson", 1.0, 2000.0, 0))
    print(f"load 1 is {per_s:.2f} requests a second", flush=True)
    steps = [(f"round {i + 1}, load {load:g}", seconds * len(compared)) for i in range(rounds) for load in loads]
    progress = Progress(steps)
    for one in compared:
        send(one, trace(per_s * WARM_LOAD, WARM_S, "warm", one.name))
    rows: dict[str, dict[str, list[Mapping[str, float]]]] = {one.name: {} for one in compared}
    for number in range(rounds):
        for load in loads:
            progress.step(f"round {number + 1}, load {load:g}")
            requests = trace(per_s * load, seconds, number, f"{load:g}")
            turn = number % len(compared)
            for one in [*compared[turn:], *compared[:turn]]:
                row = send(one, requests)
                rows[one.name].setdefault(f"{load:g}", []).append(row)
                print(f"    {one.name}: within limits {row['kept']:.2f}, refused {row['refused']:.2f}", flush=True)
        size = {"rounds": number + 1, "seconds": seconds, "full_per_s": round(per_s, 3), "limits_ms": LIMITS_MS}
        save_round({**size, **summarise(rows)}, number + 1)


def summarise(rows: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> dict[str, Any]:
    """Spreads over the rounds by system and load, and `over_bare`: the share within the limits less the bare engine's of the same trace."""

    def spreads(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        metrics = dict.fromkeys(metric for row in rounds for metric in row)
        return {metric: spread([row[metric] for row in rounds if metric in row], 4) for metric in metrics}

    systems = {name: {load: spreads(rounds) for load, rounds in by_load.items()} for name, by_load in rows.items()}
    for name, by_load in rows.items():
        for load, rounds in by_load.items() if name != BARE else ():
            pairs = zip(rounds, rows[BARE][load], strict=True)
            systems[name][load]["over_bare"] = spread([one["kept"] - bare["kept"] for one, bare in pairs], 4)
    return {"systems": systems}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of the platform; else the one `gearbox up` has running, else one is started")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the platform, and of the bare engine")
    parser.add_argument("--weights", type=Path, help="folder of `full`; else the one that `gearbox up` has built")
    parser.add_argument("--loads", type=lambda text: [float(one) for one in text.split(",")], default=LOADS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of arrivals at each load")
    args = parser.parse_args(arguments)
    log = Path(tempfile.mkdtemp(prefix="gb-")) / "bench-serve.log"

    def save_round(result: dict[str, Any], rounds: int) -> None:
        name = "bench-serve" if rounds >= PUBLISHED else "bench-serve-part"
        save(name, result)
        routing_plots.bench_serve(result, name)

    with command((NotStarted, NoWeights, NoPlatform), "rounds that were complete are saved"):
        config, folder = full_weights(args.config, args.weights)
        with platform(args.url, args.config) as url, serving(BARE, config, folder) as bare:
            model, served, _ = cards(url)
            card = Card.model_validate(served[config.variants[0].name])
            if card.profile is None or card.quality is None:
                raise NoPlatform(f"variant '{card.name}' was not measured")

            def send(one: Target, requests: Sequence[Timed]) -> Mapping[str, float]:
                return bench_goodput(one.url, one.model, folder, requests, LIMITS_MS, log, one.extra_body, one.headers)

            print(f"vLLM's client writes to {log}", flush=True)
            compared = targets(url, model, card.quality.quality, bare.url)
            measure(compared, card.profile, args.loads, args.rounds, args.seconds, send, save_round)
    return 0


if __name__ == "__main__":
    sys.exit(main())
