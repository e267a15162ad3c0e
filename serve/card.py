"""The variant card (`card.json` beside the weights): origin, quality, size and measured performance of a variant."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.validation import first_problem

CARD_FILE = "card.json"

Positive = Annotated[float, Field(gt=0)]


class CardError(Exception):
    """A card that is missing, malformed, or that does not describe the weights beside it."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Record):
    """One thing that was done to the weights, in order."""

    technique: str = Field(description="load, cast, prune, sparsify, lora, distill or quantize")
    parameters: dict[str, object] = Field(default_factory=dict)
    tool: str = Field(description="library and version that did it, e.g. 'llmcompressor 0.14.0.1'")


class TaskScore(_Record):
    """How many items of a task with known answers the variant gets right."""

    score: float = Field(ge=0, le=1, description="share of items answered correctly")
    ci95: tuple[float, float] = Field(description="95% Wilson interval of the score")
    items: int = Field(gt=0)
    scoring: str = Field(description="when an answer counts as correct")
    set_digest: str = Field(description="sha256 of the items")
    shared_ngrams: int = Field(default=0, ge=0, description="13-word runs the items share with the training text")


class AnswerAgreement(_Record):
    """Greedy answers beside full's greedy answers to the same held-out prompts."""

    equal_tokens: float = Field(
        ge=0, le=1, description="share of an answer's tokens before the first that differs, mean"
    )
    equal_tokens_ci95: tuple[float, float] = Field(description="95% bootstrap interval over prompts")
    exact: float = Field(ge=0, le=1, description="share of answers that are equal in every token")
    exact_ci95: tuple[float, float] = Field(description="95% Wilson interval")
    prompts: int = Field(gt=0)
    tokens: int = Field(gt=0, description="longest answer")


class Drift(_Record):
    """How far the engine's log-probabilities are from the same weights computed in float32 by another library."""

    mean_abs: float = Field(ge=0, description="mean |difference| of the next token's log-probability, nats")
    max_abs: float = Field(ge=0, description="largest |difference|, nats")
    activation_rounding: float = Field(
        ge=0,
        description="mean |difference| that quantizing activations makes by itself in float32, nats; 0 if they are not",
    )
    top1_flips: int = Field(ge=0, description="positions whose most likely token differs")
    near_tie_flips: int = Field(ge=0, description="those of them that are near ties in the reference")
    near_ties: int = Field(
        ge=0, description="positions whose two most probable tokens are within 0.1 nats in the reference"
    )
    tokens: int = Field(gt=0, description="predicted positions compared")
    limit: float = Field(gt=0, description="by how much mean_abs may exceed activation_rounding, nats")
    reference: str = Field(description="library, version and how quantized weights were read")


class Quality(_Record):
    """How close the variant is to `full`, measured through the engine that serves it on held-out text."""

    quality: float = Field(ge=0, le=1, description="the one number routers compare; 1.0 is `full`")
    derivation: str = Field(description="how `quality` follows from the measurements below")
    perplexity: Positive
    kl_to_full: float = Field(ge=0, description="mean KL(full || variant) per token, nats")
    kl_ci95: tuple[float, float] = Field(description="95% bootstrap interval of kl_to_full over sequences")
    top1_agreement: float = Field(ge=0, le=1, description="share of positions whose most likely token is full's")
    task_scores: dict[str, TaskScore] = Field(default_factory=dict)
    tokens: int = Field(gt=0, description="predicted positions measured")
    set: str = Field(description="what the held-out text is")
    set_digest: str = Field(description="sha256 of the token ids measured on")
    # None below: the card is older than the metric, or (drift) the float32 weights do not fit into memory
    quality_from: str = Field(default="kl", pattern=r"^(kl|agreement|task:.+)$", description="what `quality` is from")
    answers: AnswerAgreement | None = None
    drift: Drift | None = None
    training_digest: str | None = Field(default=None, description="sha256 of the training text it was checked against")
    shared_ngrams: int | None = Field(default=None, ge=0, description="13-word runs the held-out text shares with it")


class TtftPoint(_Record):
    """Time to first token at one operating point."""

    prompt_tokens: int = Field(gt=0)
    concurrency: int = Field(gt=0)
    p50_ms: Positive
    p95_ms: Positive


class TpotPoint(_Record):
    """Time per output token after the first at one operating point."""

    concurrency: int = Field(gt=0)
    p50_ms: Positive
    p95_ms: Positive


class Peak(_Record):
    """The engine at full load: as many requests as it runs at once, each replaced when it is answered."""

    concurrency: int = Field(gt=0)
    prompt_tokens: int = Field(gt=0, description="of each request")
    answer_tokens: int = Field(gt=0, description="of each request")
    requests_per_s: Positive
    output_tokens_per_s: Positive
    kv_cache_tokens: int = Field(gt=0, description="tokens the key-value cache holds")
    accelerator_bytes: int | None = Field(
        default=None, gt=0, description="in use on all accelerators; None without one"
    )


class Profile(_Record):
    """Latency and throughput measured on one kind of hardware."""

    hardware: str
    engine: str = Field(description="engine, version and the arguments that matter")
    ttft: tuple[TtftPoint, ...] = Field(min_length=1)
    tpot: tuple[TpotPoint, ...] = Field(min_length=1)
    prefill_tokens_per_s: Positive
    decode_tokens_per_s: Positive = Field(description="all streams together at the highest concurrency measured")
    startup_s: Positive = Field(description="from process start to the first answer, weights on local disk")
    resident_bytes: int = Field(gt=0, description="memory of every engine process, after the peak")
    peak: Peak | None = Field(default=None, description="None: profiled before this was measured")
    price_usd_per_hour: float = Field(ge=0, description="assumed price of the hardware")

    def cost_usd(self, prompt_tokens: int, output_tokens: int, price_usd_per_hour: float | None = None) -> float:
        """Cost of one request in USD: its share of a fully used machine's hour.

        cost = price / 3600 * (prompt / prefill_rate + output / decode_rate)
        """
        price = self.price_usd_per_hour if price_usd_per_hour is None else price_usd_per_hour
        seconds = prompt_tokens / self.prefill_tokens_per_s + output_tokens / self.decode_tokens_per_s
        return price / 3600 * seconds


class Card(_Record):
    """Everything known about one variant. Written by `compression`, read by the catalog and the router."""

    schema_version: Literal[1] = 1
    name: str
    model: str
    parent: str | None = Field(description="variant the steps started from; None for `full`")
    steps: tuple[Step, ...] = Field(min_length=1)
    weights_digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    parameters: int = Field(gt=0)
    bytes_on_disk: int = Field(gt=0, description="safetensors files only")
    max_model_len: int = Field(gt=0, description="longest prompt + answer the weights support, tokens")
    chars_per_token: Positive = Field(description="mean of the held-out text; turns characters into a token estimate")
    quality: Quality | None = Field(default=None, description="None until evaluated")
    profile: Profile | None = Field(default=None, description="None until profiled")
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    seed: int = 0
    training_digest: str | None = Field(
        default=None, description="sha256 of the text it was calibrated or trained on; None: no step uses text"
    )
    reproduce: str = Field(description="command that makes these weights again")

    def save(self, folder: Path) -> None:
        """Write `card.json` into `folder`, replacing an older one atomically."""
        target = folder / CARD_FILE
        scratch = target.with_suffix(".tmp")
        scratch.write_text(self.model_dump_json(indent=2) + "\n")
        scratch.replace(target)


def load_card(folder: Path) -> Card:
    """Load the card beside the weights in `folder`.

    Raises:
        CardError: the card is missing, or does not follow the schema; the message names the field.
    """
    path = folder / CARD_FILE
    try:
        return Card.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CardError(f"no {CARD_FILE} in {folder}") from error
    except OSError as error:
        raise CardError(f"{path} can't be read: {error.strerror}") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise CardError(f"{path} is not a valid card: {first_problem(error)}") from error


def check_card(card: Card, folder: Path) -> None:
    """Raise `CardError` unless `card` describes the weights in `folder`."""
    digest = weights_digest(folder)
    if digest != card.weights_digest:
        raise CardError(
            f"the card of variant '{card.name}' does not match the weights in {folder}: "
            f"card says {card.weights_digest[:19]}…, files are {digest[:19]}…; rebuild or remove that folder"
        )


def weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors files of a checkpoint, sorted by name. Raises `CardError` if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CardError(f"no weights (*.safetensors) in {folder}")
    return files


def weights_digest(folder: Path) -> str:
    """SHA-256 over name and content of every weight file, which detects renamed or swapped shards."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
