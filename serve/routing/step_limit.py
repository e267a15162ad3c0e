"""The time per token within which engines run: whose limit may bound how many sequences they take, by what it costs the others."""

import math
from collections.abc import Collection, Iterable, Sequence

from serve.routing.budget_classes import BudgetClass
from serve.routing.catalog import Variant
from serve.routing.prediction import Load

NOTICED = 0.05  # share of the offered work from which on a class's limits matter to others
_PRICE = 2.0  # times its fair share: what a class may cost; with half of all, its limit counts whatever it costs


def common_step_limit_ms(
    classes: Collection[BudgetClass], variants: Sequence[Variant], resting: Collection[str]
) -> float:
    """The tightest limit that engines keep for all; sets `BudgetClass.bounds` of each class.

    A limit lowers the throughput of the engines for everyone. It bounds them if they do what is asked for nevertheless, or if
    the share of the throughput that is lost is at most `_PRICE` times the fair share of the classes with such a limit or a
    tighter one.
    """
    demand = sum(one.offered_ms for one in classes)
    for one in classes:
        one.bounds = True
    limited = sorted((one for one in classes if one.step_limit_ms < math.inf), key=lambda one: -one.step_limit_ms)
    if not limited:
        return math.inf
    running = [v for v in variants if v.live.replicas and v.name not in resting]
    prompt, output = sum(one.prompt_tokens for one in classes), sum(one.output_tokens for one in classes)
    load = Load(prefill_per_token=prompt / max(output, 1e-9))
    needed = min(output, _tokens_per_s(running, load, math.inf))
    fair = sum(flow.fair for one in classes for flow in one.flows.values())
    affordable = math.inf
    for i, one in enumerate(limited):
        lost = 1 - _tokens_per_s(running, load, one.step_limit_ms) / max(needed, 1e-9)
        its = sum(flow.fair for tighter in limited[i:] for flow in tighter.flows.values()) / max(fair, 1e-9)
        if lost > _PRICE * its:
            for tighter in limited[i:]:
                tighter.bounds = False
            break
        if one.offered_ms > NOTICED * demand:
            affordable = one.step_limit_ms
    return affordable


def _tokens_per_s(variants: Iterable[Variant], load: Load, limit_ms: float) -> float:
    """Tokens per second of all replicas that run as many sequences as they may within `limit_ms` per token."""
    total = 0.0
    for variant in variants:
        places = max(variant.latency.places(load, limit_ms), 1) if limit_ms < math.inf else variant.max_running
        total += 1000 * places / variant.latency.step_ms(load, places) * variant.live.replicas
    return total
