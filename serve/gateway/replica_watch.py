"""Replica watch: eject the replicas that have stalled, probe the ejected ones. Called regularly."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from time import perf_counter

from serve.gateway.engine_client import Engines
from serve.gateway.replica_health import FLOOR_S, STEPS
from serve.routing.catalog import Variant
from serve.routing.prediction import Load

KEPT_SHARE = 0.5  # of all replicas; where more seem to have stalled, the machine is slow
_LONGEST_PERIOD_S = 2.0  # between two checks; after a longer one, this process itself stood still


class ReplicaWatch:
    """Watches the replicas of all variants for one gateway."""

    def __init__(self, engines: Engines, variants: Mapping[str, Variant], model: str) -> None:
        self._engines, self._variants, self._model = engines, variants, model
        self._checked_at = perf_counter()
        self._probes: set[asyncio.Task[None]] = set()

    def refresh(self, loads: Iterable[tuple[Variant, Load]]) -> None:
        """Eject, probe and take back replicas; `loads` has the load of each variant now."""
        now = perf_counter()
        health = self._engines.health
        if now - self._checked_at > _LONGEST_PERIOD_S:
            health.resume(now)
        self._checked_at = now
        urls = {variant.name: self._engines.urls(variant.name) for variant in self._variants.values()}
        running = {url for its in urls.values() for url in its}
        health.forget(running, now)
        for variant, load in loads:
            limit_s = silence_limit_s(variant, load)
            for url in urls[variant.name]:
                left = len(running - health.ejected(running) - {url})
                alone = left < KEPT_SHARE * len(running)
                if health.stalled(url, limit_s, alone, now):
                    self._engines.eject(variant, url, "stalled")
        for url in health.to_probe(now):
            probe = asyncio.get_running_loop().create_task(self._probe(url))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    async def _probe(self, url: str) -> None:
        answered = await self._engines.probe(url, self._model)
        self._engines.health.on_probe(url, answered, perf_counter())


def silence_limit_s(variant: Variant, load: Load) -> float:
    """Longest silence of a busy replica that is predicted: some steps, and the prompts that are to be read."""
    latency = variant.latency
    step_ms = latency.step_ms(load, load.requests / (load.replicas or 1))
    slower = (1 + load.colocated_busy_variants) * max(math.exp(latency.drift), 1.0)
    prefill_ms = load.pending_prefill_tokens * latency.ms_per_prefill_token * slower
    return max(FLOOR_S, (STEPS * step_ms + prefill_ms) / 1000)
