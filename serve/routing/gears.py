"""Gears that share hardware: which of them work under the present traffic, and which rest because the others use it better."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from serve.routing.catalog import Variant
from serve.routing.prediction import Load

_CONTENDED = 0.7  # utilization from which on gears that share hardware are in each other's way
_BETTER = 0.05  # mean log of the share kept by which another choice must be better than the present one
_LEAST_KEPT = 0.01  # a class that gets nothing counts as one that gets this


@dataclass(slots=True, frozen=True)
class Demand:
    """What one class of budgets asks for, per second, and its limits."""

    requests: float
    prompt_tokens: float
    output_tokens: float
    step_limit_ms: float
    min_quality: float


def resting(variants: Iterable[Variant], demands: Sequence[Demand], before: Collection[str]) -> frozenset[str]:
    """Names of the variants that should get no requests which another can take, given those that rest already.

    On each hardware the gears are chosen that keep most budgets of all classes, by the sum of the logarithms of the shares
    kept (proportional fairness). Without contention, none rests. A constant number of operations for each pair of variants.
    """
    timed = [one for one in demands if one.step_limit_ms < math.inf]
    if not timed:
        return frozenset()
    found: set[str] = set()
    for gears in _sharing(variants):
        found |= _resting(gears, demands, before)
    return frozenset(found)


def _resting(gears: Sequence[Variant], demands: Sequence[Demand], before: Collection[str]) -> set[str]:
    names = {gear.name for gear in gears}
    best, *others = sorted(gears, key=lambda gear: -gear.quality.quality)
    if not others or _score([best], demands)[1] < _CONTENDED:
        return set()

    def value(some: Sequence[Variant]) -> float:
        present = {gear.name for gear in some} == names - set(before)
        return _score(some, demands)[0] + _BETTER * present

    choices = itertools.chain.from_iterable(itertools.combinations([best, *others], size) for size in (1, 2))
    return names - {gear.name for gear in max(choices, key=value)}


def _score(gears: Sequence[Variant], demands: Sequence[Demand]) -> tuple[float, float]:
    """Mean log of the share of its requests that each class keeps, weighted by requests, and the utilization of the busiest gear."""
    ratio = sum(one.prompt_tokens for one in demands) / max(sum(one.output_tokens for one in demands), 1e-9)
    load, limit_ms = Load(prefill_per_token=ratio), min(one.step_limit_ms for one in demands)
    tokens_per_s = {}
    for gear in gears:
        places = max(gear.latency.places(load, limit_ms, len(gears) - 1), 1)
        step_ms = gear.latency.step_ms(load, places, len(gears) - 1)
        tokens_per_s[gear.name] = 1000 * places / step_ms * max(gear.live.replicas, 1)
    utilization = dict.fromkeys(tokens_per_s, 0.0)
    placed: list[tuple[Demand, str | None]] = []
    for one in sorted(demands, key=lambda one: -one.min_quality):  # the choosiest first
        allowed = [gear.name for gear in gears if gear.quality.quality >= one.min_quality]
        name = min(allowed, key=lambda name: utilization[name] + one.output_tokens / tokens_per_s[name], default=None)
        if name is not None:
            utilization[name] += one.output_tokens / tokens_per_s[name]
        placed.append((one, name))
    total = sum(one.requests for one in demands) or 1.0
    kept = ((one, 0.0 if name is None else min(1 / max(utilization[name], 1e-9), 1.0)) for one, name in placed)
    score = sum(one.requests / total * math.log(_LEAST_KEPT + share) for one, share in kept)
    return score, max(utilization.values())


def _sharing(variants: Iterable[Variant]) -> Iterator[list[Variant]]:
    """Groups of running variants that share hardware."""
    groups: list[tuple[set[str], list[Variant]]] = []
    for variant in variants:
        if not variant.live.replicas or not variant.live.hardware:
            continue
        hardware, members = set(variant.live.hardware), [variant]
        apart = []
        for other, its in groups:
            if other.isdisjoint(hardware):
                apart.append((other, its))
            else:
                hardware |= other
                members = its + members
        groups = [*apart, (hardware, members)]
    return (members for _, members in groups)
