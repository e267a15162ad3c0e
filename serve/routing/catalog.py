"""The catalog: the deployed variants of a model, with their cards and live state."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from serve.card import Card, Profile, Quality
from serve.config.platform import ConfigError
from serve.config.sections import VariantConfig
from serve.routing.live_state import LiveState
from serve.routing.prediction import Features, LatencyModel, Load
from serve.routing.replica_state import choose


@dataclass(slots=True, frozen=True)
class Variant:
    """One servable set of weights, with all the router needs: card, limits, prices, latency model and live state."""

    name: str
    card: Card
    quality: Quality
    profile: Profile
    latency: LatencyModel
    price_usd_per_hour: float
    max_model_len: int
    max_running: int  # per replica
    max_waiting: int  # per replica
    max_replicas: int
    scales_to_zero: bool
    live: LiveState = field(default_factory=LiveState, compare=False)

    def load(
        self,
        features: Features,
        colocated: float = 0,
        step_limit_ms: float = math.inf,
        avoid: Collection[str] = (),
    ) -> Load:
        """The load that a request of `features` would meet now, at the replica that it would go to.

        `step_limit_ms`: time per token that its engine should keep; `avoid`: base URLs of replicas.
        """
        live, replicas = self.live, self.live.by_replica
        if len(replicas) == 1:
            ((only, state),) = replicas.items()
            if only not in avoid:
                return live.load(colocated, only, state.cached_tokens(features))
        load = live.load(colocated)
        if len(replicas) <= 1:
            return load
        places = math.inf if step_limit_ms == math.inf else self.latency.places(load, step_limit_ms)
        chosen = choose(replicas, features, load, self.latency, live.peers, places, avoid)
        if chosen is None:
            return load
        replica, requests, pending, cached = chosen
        return Load(*load[:5], replica, requests, pending, cached)

    def cost_usd(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of one request at this deployment's price, USD."""
        return self.profile.cost_usd(prompt_tokens, output_tokens, self.price_usd_per_hour)

    @property
    def technique(self) -> str:
        """The compression steps that made the weights, `none` for the original model."""
        return " + ".join(step.technique for step in self.card.steps if step.technique != "load") or "none"

    def summary(self) -> dict[str, object]:
        """Summary of the card and prices, for clients that choose a variant."""
        million = 1_000_000
        return {
            "quality": self.quality.quality,
            "perplexity": self.quality.perplexity,
            "kl_to_full": self.quality.kl_to_full,
            "top1_agreement": self.quality.top1_agreement,
            "technique": self.technique,
            "parameters": self.card.parameters,
            "bytes_on_disk": self.card.bytes_on_disk,
            "resident_bytes": self.profile.resident_bytes,
            "decode_tokens_per_s": round(1000 / self.profile.tpot[0].p50_ms, 1),
            "prefill_tokens_per_s": self.profile.prefill_tokens_per_s,
            "usd_per_million_input_tokens": self.cost_usd(million, 0),
            "usd_per_million_output_tokens": self.cost_usd(0, million),
            "max_model_len": self.max_model_len,
        }


def make_variant(config: VariantConfig, card: Card, engine_args: Mapping[str, object], max_waiting: int) -> Variant:
    """Build a variant from its configuration and its card.

    Raises:
        ConfigError: the card has no measured quality or latency profile.
    """
    if card.quality is None or card.profile is None:
        raise ConfigError(
            f"variant '{config.name}': its card has no measured quality or profile; run 'gearbox up' again"
        )
    length = engine_args.get("max_model_len", card.max_model_len)
    max_num_seqs = engine_args.get("max_num_seqs")
    max_running = max_num_seqs if isinstance(max_num_seqs, int) else 256
    price = config.price_usd_per_hour
    return Variant(
        name=config.name,
        card=card,
        quality=card.quality,
        profile=card.profile,
        latency=LatencyModel(card.profile, max_running),
        price_usd_per_hour=card.profile.price_usd_per_hour if price is None else price,
        max_model_len=length if isinstance(length, int) and length > 0 else card.max_model_len,  # -1: vLLM's "auto"
        max_running=max_running,
        max_waiting=max_waiting,
        max_replicas=config.replicas.max,
        scales_to_zero=config.replicas.min == 0,
    )
