"""Free places at the engines: a quick look whether a waiting request could start, and how long the engine takes to empty for it."""

import math
from collections.abc import Iterable

from serve.routing.catalog import Variant
from serve.routing.prediction import Load
from serve.routing.waiting_queue import Waiting


class FreePlaces:
    """The engines as they are now, while they keep `step_limit_ms` per token."""

    def __init__(self, loads: Iterable[tuple[Variant, Load]], step_limit_ms: float) -> None:
        self._loads = {variant.name: (variant, load) for variant, load in loads}
        self._step_limit_ms = step_limit_ms
        self._most: dict[tuple[float | None, float], float] = {}

    def may_take(self, waiting: Waiting, limit_ms: float) -> bool:
        """False if no variant has as many free places within `limit_ms` per token: then a decision would be in vain."""
        floor = waiting.budget.min_quality if waiting.rejects else None
        if (most := self._most.get((floor, limit_ms))) is None:
            allowed = [
                one for one in self._loads.values() if one[0].quality.quality >= (floor or 0.0) and one[1].replicas
            ]
            most = max((_free(variant, load, limit_ms) for variant, load in allowed), default=math.inf)
            self._most[floor, limit_ms] = most
        return waiting.features.sequences <= most

    def holds(self, waiting: Waiting, limit_ms: float, now: float) -> bool:
        """Whether no other may start at its variant before a request that needs much room: one more answer would make it late.

        Not for one that would be late anyway. Once `Waiting.holds` is set, it goes on.
        """
        if waiting.holds or not waiting.is_large or waiting.variant not in self._loads:
            return waiting.holds
        variant, load = self._loads[waiting.variant]
        batch = max(load.requests / (load.replicas or 1), 1.0)
        answer_s = variant.live.usual_output * variant.latency.step_ms(load, batch) / 1000
        need_s = answer_s * _to_end(waiting, variant, load, limit_ms)
        return need_s <= waiting.start_by - now < need_s + answer_s


def _to_end(waiting: Waiting, variant: Variant, load: Load, limit_ms: float) -> float:
    """Share of the sequences in flight that have to end before the request has a place."""
    longer = waiting.features.prompt_tokens - (variant.live.usual_prompt or math.inf)
    stall_ms = max(longer, 0.0) * variant.latency.ms_per_prefill_token / (variant.live.usual_output or 1.0)
    places = variant.latency.places(load, limit_ms - stall_ms) * (load.replicas or 1)
    return min(max(load.requests + waiting.features.sequences - places, 0.0) / max(load.requests, 1.0), 1.0)


def _free(variant: Variant, load: Load, limit_ms: float) -> float:
    """Sequences that a variant can take without harm to those under way, at most; any number at an idle one."""
    if limit_ms == math.inf or not load.requests:
        return math.inf
    return max(variant.latency.places(load, limit_ms), 1) * load.replicas - load.requests
