"""Replica watch: eject the replicas that have stalled, probe those that are suspect or ejected. Called every `CHECK_S`."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from time import perf_counter

from serve.gateway.engine_client import Engines
from serve.gateway.replica_health import MIN_STALL_S, PAUSE_S, SILENT_TOKENS
from serve.routing.catalog import Variant
from serve.routing.prediction import LatencyModel, Load


class ReplicaWatch:
    """Watches the replicas of all variants for one gateway."""

    def __init__(self, engines: Engines, variants: Mapping[str, Variant], model: str) -> None:
        self._engines, self._variants, self._model = engines, variants, model
        self._checked_at = perf_counter()
        self._probes: set[asyncio.Task[None]] = set()

    def check(self, loads: Iterable[tuple[Variant, Load]]) -> None:
        """Eject, probe and take back replicas; `loads` has the load of each variant now."""
        now = perf_counter()
        health = self._engines.health
        if now - self._checked_at > PAUSE_S:
            health.resume(now)
        self._checked_at = now
        predicted_s: dict[str, float] = {}
        variants: dict[str, Variant] = {}
        for variant, load in loads:
            urls = self._engines.urls(variant.name)
            predicted_s.update(dict.fromkeys(urls, predicted_silence_s(variant, load)))
            variants.update(dict.fromkeys(urls, variant))
        health.forget(predicted_s, now)
        for url, cause in health.check(predicted_s, now):
            self._engines.eject(variants[url], url, cause)
        for variant in self._variants.values():
            variant.live.on_silence(health.suspects)
        for url in health.to_probe(now):
            probe = asyncio.get_running_loop().create_task(self._probe(url))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    async def _probe(self, url: str) -> None:
        answered = False
        try:
            answered = await self._engines.probe(url, self._model)
        finally:  # a replica is not probed again before that
            self._engines.health.on_probe(url, answered, perf_counter())


def predicted_silence_s(variant: Variant, load: Load) -> float:
    """Longest silence of a replica with work that is predicted: some steps, and the prompts that other gateways have it read."""
    step_ms = variant.latency.step_ms(load, load.requests / (load.replicas or 1))
    others = max(load.pending_prefill_tokens - variant.live.pending_prefill_tokens, 0)
    return max(MIN_STALL_S, (SILENT_TOKENS * step_ms + others * _ms_per_prompt_token(variant.latency, load)) / 1000)


def predicted_reading_s(variant: Variant, load: Load, prompt_tokens: int) -> float:
    """Predicted time until the replica of `load` has read `prompt_tokens`, and the prompts ahead."""
    latency = variant.latency
    tokens_ms = (load.prefill_here + prompt_tokens) * _ms_per_prompt_token(latency, load)
    return max(tokens_ms, latency.ttft_by_prompt(prompt_tokens)) / 1000


def _ms_per_prompt_token(latency: LatencyModel, load: Load) -> float:
    """By the profile, as much slower as the neighbours and the present speed of decoding make it."""
    return latency.ms_per_prefill_token * (1 + load.colocated_busy_variants) * max(math.exp(latency.drift), 1.0)
