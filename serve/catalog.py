"""The catalog: the variants of a model that are deployed, their cards, and how each one is right now."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.card import Card, Profile, Quality
from serve.config import ConfigError, VariantConfig
from serve.prediction import LatencyModel


@dataclass(slots=True)
class Live:
    """One variant's state as this gateway knows it. Mutable: the gateway counts, the watcher refreshes."""

    replicas: int = 0
    running: int = 0  # in the engines, at the last look
    waiting: int = 0  # queued in the engines, at the last look
    kv_usage: float = 0.0  # share of the KV cache in use, highest replica
    in_flight: int = 0  # this gateway's own requests, now

    @property
    def load(self) -> int:
        """Requests at the variant: what the engines reported or what this gateway has there, whichever is more."""
        return max(self.in_flight, self.running + self.waiting)


@dataclass(slots=True, frozen=True)
class Variant:
    """One servable set of weights with everything the router needs to know of it."""

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
    live: Live = field(default_factory=Live, compare=False)

    def cost_usd(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of one request at this deployment's price, USD."""
        return self.profile.cost_usd(prompt_tokens, output_tokens, self.price_usd_per_hour)

    def summary(self) -> dict[str, object]:
        """What a client may want to know before choosing: the card in brief."""
        million = 1_000_000
        return {
            "quality": self.quality.quality,
            "perplexity": self.quality.perplexity,
            "kl_to_full": self.quality.kl_to_full,
            "top1_agreement": self.quality.top1_agreement,
            "technique": " + ".join(step.technique for step in self.card.steps if step.technique != "load") or "none",
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
    """Join what is configured with what the card says.

    Raises:
        ConfigError: the card was never evaluated or profiled, so nothing could be predicted from it.
    """
    if card.quality is None or card.profile is None:
        raise ConfigError(
            f"variant '{config.name}': its card has no measured quality or profile; run 'gearbox up' again"
        )
    length = engine_args.get("max_model_len", card.max_model_len)
    max_num_seqs = engine_args.get("max_num_seqs", 256)
    max_running = max_num_seqs if isinstance(max_num_seqs, int) else 256
    return Variant(
        name=config.name,
        card=card,
        quality=card.quality,
        profile=card.profile,
        latency=LatencyModel(card.profile, max_running),
        price_usd_per_hour=config.price_usd_per_hour or card.profile.price_usd_per_hour,
        max_model_len=length if isinstance(length, int) else card.max_model_len,
        max_running=max_running,
        max_waiting=max_waiting,
        max_replicas=config.replicas.max,
        scales_to_zero=config.replicas.min == 0,
    )
