"""Recipes: how a variant's weights are made, as data, and the content-addressed key of what they make.

Free of torch. Every parameter is checked here, before anything is loaded.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from serve.card import first_problem

FORMAT = 1  # raise it when the same recipe would make different weights


class RecipeError(Exception):
    """A recipe that cannot be followed: says which field is wrong and what would be right."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Load(_Section):
    """Take the source's weights as they are."""

    technique: Literal["load"]
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Prune(_Section):
    """Drop the transformer layers that change their input least (block influence)."""

    technique: Literal["prune"]
    layers: int = Field(ge=2, description="layers that stay; the first and the last always do")
    samples: int = Field(default=16, ge=1, description="calibration sequences")
    sequence_length: int = Field(default=256, ge=8, description="tokens of each")


class Distill(_Section):
    """Train what the steps before left of the parent to answer like the parent.

    L = alpha * H(y, softmax(z_s)) + beta * H(softmax(z_t / tau), softmax(z_s / tau)), see `losses.distillation_loss`.
    """

    technique: Literal["distill"]
    alpha: float = Field(default=0.0, ge=0, description="weight of the next token's cross entropy")
    beta: float = Field(default=1.0, ge=0, description="weight of the cross entropy with the parent's distribution")
    tau: float = Field(default=1.0, gt=0, description="temperature of the second term")
    scale_by_tau: bool = Field(default=True, description="multiply the second term by tau^2")
    divergence: Literal["forward", "reverse", "js"] = Field(
        default="forward", description="second term: H, which learns like KL(parent || student); the KL reversed; or JS"
    )
    js_weight: float = Field(
        default=0.5, gt=0, lt=1, description="the parent's weight in the Jensen-Shannon divergence"
    )
    hidden: float = Field(default=0.0, ge=0, description="weight of matching the parent's hidden states")
    hidden_layers: dict[NonNegativeInt, NonNegativeInt] | None = Field(
        default=None, min_length=1, description="layer of the student: layer of the parent; null matches all, evenly"
    )
    teacher_top_k: int | None = Field(
        default=None, ge=1, description="learn from the parent's likeliest tokens and the rest as one, kept on disk"
    )
    data: Literal["text", "teacher"] = Field(default="text", description="teacher mixes the parent's completions in")
    teacher_share: float = Field(default=0.5, gt=0, le=1, description="share of the completions in the training data")
    completions: int = Field(default=256, ge=1, description="completions the parent writes")
    prompt_tokens: int = Field(default=32, ge=1, description="tokens of training text before each completion")
    learning_rate: float = Field(default=5e-4, gt=0, le=0.1)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the budget over which the rate rises")
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0, description="longest gradient")
    batch: int = Field(default=8, ge=1, description="sequences a step, over all processes")
    micro_batch: int | None = Field(default=None, ge=1, description="sequences a forward pass; null is the whole batch")
    gradient_checkpointing: bool = Field(default=False, description="less memory for a third more computing")
    sequence_length: int = Field(default=256, ge=8, description="tokens of each")
    tokens: int | None = Field(default=None, ge=1, description="budget in tokens")
    minutes: float | None = Field(
        default=None, gt=0, description="budget in minutes; with `tokens`, whichever ends first"
    )
    checkpoint_every: int = Field(default=20, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.alpha + self.beta + self.hidden == 0:
            raise ValueError("alpha, beta and hidden are all 0, so there is nothing to learn; raise one")
        if self.tokens is None and self.minutes is None:
            raise ValueError("no budget: give tokens, minutes or both")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_layers is not None and not self.hidden:
            raise ValueError("hidden_layers has no effect while hidden is 0; give hidden a weight")
        if self.teacher_top_k and not self.beta:
            raise ValueError("teacher_top_k has no effect while beta is 0; give beta a weight")
        if self.teacher_top_k and self.hidden:
            raise ValueError("hidden runs the parent in every step, so teacher_top_k saves nothing; leave one out")
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) is a part of batch ({self.batch}); make it smaller")
        if self.data == "teacher" and self.prompt_tokens >= self.sequence_length:
            raise ValueError(
                f"a prompt of {self.prompt_tokens} tokens leaves nothing to complete of {self.sequence_length}; "
                "lower prompt_tokens"
            )
        return self


class Quantize(_Section):
    """Fewer bits for weights and activations, through llm-compressor."""

    technique: Literal["quantize"]
    scheme: Literal["W8A8"] = Field(default="W8A8", description="int8 weights per channel, int8 activations per token")
    method: Literal["gptq", "rtn"] = Field(default="gptq", description="GPTQ, or rounding to nearest")
    smoothquant: float | None = Field(default=0.8, ge=0, le=1, description="migration strength; null leaves it out")
    samples: int = Field(default=32, ge=1, description="calibration sequences")
    sequence_length: int = Field(default=512, ge=8, description="tokens of each")


Step = Annotated[Load | Prune | Distill | Quantize, Field(discriminator="technique")]


class Recipe(_Section):
    """Steps, in order, from the source or from another variant to this one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="the variant it usually makes")
    parent: str | None = Field(default=None, description="variant to start from; null starts from the source")
    seed: int = Field(default=0, ge=0)
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _composes(self) -> Self:
        techniques = [step.technique for step in self.steps]
        if self.parent is None and techniques[0] != "load":
            raise ValueError("a recipe without a parent starts from the source: its first step must be 'load'")
        if "load" in techniques[0 if self.parent else 1 :]:
            raise ValueError("'load' can only be the first step of a recipe without a parent")
        if self.parent is None and "distill" in techniques:
            raise ValueError("'distill' learns from the parent: name one")
        if "quantize" in techniques[:-1]:
            raise ValueError("'quantize' must be the last step: quantized weights can be neither pruned nor trained")
        return self


def load_recipe(file: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: missing, not YAML, or with a field that is unknown or out of range.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {file} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise RecipeError(f"the recipe {file} is wrong: {first_problem(error)}") from error


def recipe_key(recipe: Recipe, source: str, parent_key: str | None, text: str) -> str:
    """Content address of the weights `recipe` makes: sha256, hex.

    Args:
        source: identity of the model source, see `source.identity`.
        parent_key: key of the variant it starts from.
        text: identity of the calibration and training text; without effect on recipes that use none.
    """
    uses_text = any(step.technique != "load" for step in recipe.steps)
    content = {
        "format": FORMAT,
        "recipe": recipe.model_dump(mode="json", exclude={"name"}),
        "source": source,
        "parent": parent_key,
        "text": text if uses_text else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
