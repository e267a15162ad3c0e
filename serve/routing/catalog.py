"""The catalog: the variants of a model that are deployed, their cards, and how each one is right now."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.card import Card, Profile, Quality
from serve.config.platform import ConfigError, VariantConfig
from serve.routing.prediction import Features, LatencyModel, Load

BLOCK_CHARS = 512  # of a prompt's text: about one block of the engine's prefix cache
_CHARS_PER_TOKEN = 4
_NEWEST = 0.2  # weight of the newest look in what is followed from look to look


@dataclass(slots=True)
class Live:
    """One variant's state as this gateway knows it. Mutable: the gateway counts, the watcher refreshes."""

    replicas: int = 0
    been_up: bool = False  # since this gateway knows it
    running: int = 0  # in the engines, at the last look
    waiting: int = 0  # queued in the engines, at the last look
    kv_usage: float = 0.0  # share of the KV cache in use, highest replica
    in_flight: int = 0  # sequences of this gateway's own requests, now
    unread_tokens: int = 0  # prompt tokens of this gateway's own requests without a first token, now
    others: int = 0  # sequences of other gateways, at the last look
    sent: int = 0  # sequences of this gateway's own requests since the last look
    peers: int = 0  # other gateways that decide like this one
    prompt_rate: float = 0.0  # prompt tokens a second of this gateway's own requests, over the last seconds
    kv_tokens: int = 0  # that the prefix cache of one replica holds; 0 when there is none
    _new_tokens: int = 0  # of prompts since the last look
    _blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)  # of prompts it has read, the latest last

    def load(self, busy_variants: int = 0, features: Features | None = None) -> Load:
        """What a request of `features` would meet now, while `busy_variants` (this one included) have requests.

        Own requests are known exactly. Other gateways' are as old as the last look; since then each of them is taken to
        have sent as many as this one, so that several do not all run to the variant that looked idle.
        """
        unseen = self.sent * self.peers
        share = 1 + (self.others + unseen) / self.in_flight if self.in_flight else 1
        requests = self.in_flight + self.others + unseen
        others = busy_variants - (requests > 0)
        return Load(
            requests,
            round(self.unread_tokens * share),
            self.replicas,
            max(others, 0),
            self.prompt_rate * share,
            self._cached(features) if features and self._blocks else 0,
        )

    def _cached(self, features: Features) -> int:
        """Tokens of the prompt that a replica is expected to have in its cache; any replica may get it."""
        found = 0
        for block in features.blocks:
            if block not in self._blocks:
                break
            found += 1
        return features.prompt_tokens * found // (len(features.blocks) + 1) // max(self.replicas, 1)

    def remember(self, features: Features) -> None:
        """A prompt was read: it is in the cache of the replica that read it, until as much newer has come as that holds."""
        for block in features.blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        most = self.kv_tokens * _CHARS_PER_TOKEN * max(self.replicas, 1) // BLOCK_CHARS
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)

    @property
    def busy(self) -> bool:
        """Whether it has requests, as far as is known."""
        return self.in_flight + self.others > 0

    def looked(
        self,
        replicas: int,
        running: int,
        waiting: int,
        kv_usage: float,
        elapsed_s: float = 0.5,
        kv_tokens: int | None = None,
    ) -> None:
        """Take what the engines report, `elapsed_s` after the last time."""
        if replicas < self.replicas:
            self._blocks.clear()  # one went, with its cache
        if kv_tokens is not None:
            self.kv_tokens = kv_tokens
        self.prompt_rate += _NEWEST * (self._new_tokens / elapsed_s - self.prompt_rate)
        self._new_tokens = 0
        self.replicas, self.running, self.waiting, self.kv_usage = replicas, running, waiting, kv_usage
        self.been_up = self.been_up or replicas > 0
        self.others = max(0, running + waiting - self.in_flight)
        self.sent = 0

    def began(self, prompt_tokens: int, sequences: int = 1) -> None:
        """A request was sent to the variant: the engine counts each of its sequences."""
        self.in_flight += sequences
        self.sent += sequences
        self.unread_tokens += prompt_tokens
        self._new_tokens += prompt_tokens

    def read(self, prompt_tokens: int) -> None:
        """Its first token came, or it ended before."""
        self.unread_tokens -= prompt_tokens

    def ended(self, sequences: int = 1) -> None:
        """It is over."""
        self.in_flight -= sequences


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

    @property
    def technique(self) -> str:
        """How its weights were made from the model's."""
        return " + ".join(step.technique for step in self.card.steps if step.technique != "load") or "none"

    def summary(self) -> dict[str, object]:
        """What a client may want to know before choosing: the card in brief."""
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
    """Join what is configured with what the card says.

    Raises:
        ConfigError: the card was never evaluated or profiled, so nothing could be predicted from it.
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
