"""Recipe schema: the steps that build a variant, and the content address of their result.

Does not import torch. Every parameter is validated here, before anything is loaded.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from compression.errors import UserError
from serve.card import Step as CardStep
from serve.config.yaml_file import YamlError, read_yaml
from serve.validation import first_problem

FORMAT = 1  # increase it when the same recipe would make different weights


class RecipeError(UserError):
    """An invalid recipe; the message names the wrong field and what would be right."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Load(_Section):
    """Load the source's weights unchanged."""

    technique: Literal["load"]
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Cast(_Section):
    """Store the weights in another format. Steps before and after it still compute in what the hardware is fast in."""

    technique: Literal["cast"]
    dtype: Literal["bfloat16", "float16"]


class Prune(_Section):
    """Remove structure by measured influence; the result is a smaller dense model, which serves faster."""

    technique: Literal["prune"]
    layers: int | None = Field(default=None, ge=2, description="layers that stay; the first and the last always do")
    mlp_width: int | None = Field(
        default=None, ge=32, multiple_of=32, description="neurons that stay in each MLP; kernels want multiples of 32"
    )
    heads: int | None = Field(
        default=None, ge=1, description="query heads that stay in each layer, in whole key-value groups"
    )
    vocabulary: int | None = Field(default=None, ge=16, description="tokens that stay, by their count in the text")
    samples: int = Field(default=16, ge=1, description="calibration sequences")
    sequence_length: int = Field(default=256, ge=8, description="tokens of each")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if self.layers is self.mlp_width is self.heads is self.vocabulary is None:
            raise ValueError("nothing to prune: give layers, mlp_width, heads, vocabulary or several of them")
        return self


class Sparsify(_Section):
    """Set the least important weights to zero. The matrices keep their shapes: vLLM serves them no faster."""

    technique: Literal["sparsify"]
    method: Literal["magnitude", "wanda", "sparsegpt"] = "sparsegpt"
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    sparsity: float = Field(default=0.5, gt=0, lt=1, description="share of zeros in every linear layer but lm_head")
    samples: int = Field(default=32, ge=1, description="calibration sequences; magnitude needs none")
    sequence_length: int = Field(default=512, ge=8, description="tokens of each")

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError("the pattern 2:4 is a sparsity of 0.5; leave sparsity out or use pattern 'unstructured'")
        if self.pattern == "2:4" and self.method == "magnitude":
            raise ValueError("the pattern 2:4 goes with method 'wanda' or 'sparsegpt', not with 'magnitude'")
        return self


class Lora(_Section):
    """Recover what pruning broke: train low-rank additions to the linear layers like `distill`, then merge them."""

    technique: Literal["lora"]
    rank: int = Field(default=16, ge=1)
    scale: float = Field(default=2.0, gt=0, description="factor on the additions: PEFT's lora_alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    alpha: float = Field(default=0.0, ge=0, description="as in distill")
    beta: float = Field(default=1.0, ge=0, description="as in distill")
    tau: float = Field(default=1.0, gt=0, description="as in distill")
    learning_rate: float = Field(default=2e-3, gt=0, le=0.1)
    batch: int = Field(default=8, ge=1, description="sequences a step")
    sequence_length: int = Field(default=256, ge=8, description="tokens of each")
    tokens: int | None = Field(default=None, ge=1, description="budget in tokens")
    minutes: float | None = Field(default=None, gt=0, description="budget in minutes; whichever ends first")
    checkpoint_every: int = Field(default=20, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        self.training()
        return self

    def training(self) -> "Distill":
        """How the additions are trained. Raises `ValueError` for what distillation would refuse."""
        lora_only = {"technique", "rank", "scale", "dropout"}
        try:
            return Distill(technique="distill", **self.model_dump(exclude=lora_only))
        except ValidationError as error:
            raise ValueError(first_problem(error).removeprefix("document: Value error, ")) from error


class Distill(_Section):
    """Train the result of the earlier steps to match the parent's output distribution.

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
        default=None,
        ge=1,
        description="learn from the parent's most probable tokens and the rest as one, cached on disk",
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
    def _check_objective_and_budget(self) -> Self:
        if self.alpha + self.beta + self.hidden == 0:
            raise ValueError("alpha, beta and hidden are all 0, so there is nothing to learn; raise one")
        if self.tokens is None and self.minutes is None:
            raise ValueError("no budget: give tokens, minutes or both")
        return self

    @model_validator(mode="after")
    def _check_dependencies(self) -> Self:
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
    """Fewer bits for weights and activations, through llm-compressor.

    | scheme | weights | activations |
    |---|---|---|
    | W8A8 | int8 per channel | int8, a scale per token, found while serving |
    | W8A8-static | int8 per channel | int8, one scale a layer, found by calibration |
    | W8A16 | int8 per channel | as they are |
    | W4A16 | int4 per group of `group_size` inputs | as they are |
    | FP8 | e4m3 per channel | e4m3, a scale per token, found while serving |
    """

    technique: Literal["quantize"]
    scheme: Literal["W8A8", "W8A8-static", "W8A16", "W4A16", "FP8"] = "W8A8"
    method: Literal["rtn", "gptq", "awq"] = Field(default="gptq", description="rtn rounds to nearest")
    smoothquant: float | None = Field(default=0.8, ge=0, le=1, description="migration strength; null leaves it out")
    group_size: Literal[32, 64, 128] | None = Field(default=None, description="of W4A16; 64 unless given")
    kv_cache: Literal["fp8", "int8"] | None = Field(default=None, description="scales for a quantized key-value cache")
    samples: int = Field(default=32, ge=1, description="calibration sequences")
    sequence_length: int = Field(default=512, ge=8, description="tokens of each")

    @model_validator(mode="before")
    @classmethod
    def _fill_scheme_defaults(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        scheme = data.get("scheme", "W8A8")
        scheme_defaults: dict[str, object] = {}
        if scheme not in ("W8A8", "W8A8-static"):
            scheme_defaults["smoothquant"] = None
        if scheme == "W4A16":
            scheme_defaults["group_size"] = 64
        if scheme == "FP8":
            scheme_defaults["method"] = "rtn"
        return scheme_defaults | data

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.smoothquant is not None and self.scheme not in ("W8A8", "W8A8-static"):
            raise ValueError(
                f"smoothquant makes activations easier to round, and {self.scheme} has no int8 activations"
            )
        if self.scheme == "FP8" and self.method != "rtn":
            raise ValueError(f"FP8 is rounded to nearest: method must be 'rtn', not '{self.method}'")
        if self.method == "awq" and self.scheme != "W4A16":
            raise ValueError(f"awq goes with W4A16, not with {self.scheme}: use 'gptq' or 'rtn'")
        if (self.group_size is not None) != (self.scheme == "W4A16"):
            raise ValueError(f"group_size belongs to W4A16 alone; {self.scheme} has a scale per channel")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether the step needs calibration text, for activations."""
        static = self.scheme == "W8A8-static" or self.kv_cache is not None
        return self.method != "rtn" or self.smoothquant is not None or static


Step = Annotated[Load | Cast | Prune | Sparsify | Lora | Distill | Quantize, Field(discriminator="technique")]


class Recipe(_Section):
    """Steps, in order, from the source or from another variant to this one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="the variant it usually makes")
    parent: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="variant to start from; null starts from the source",
    )
    seed: int = Field(default=0, ge=0)
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_step_order(self) -> Self:
        techniques = [step.technique for step in self.steps]
        if self.parent is None and techniques[0] != "load":
            raise ValueError("a recipe without a parent starts from the source: its first step must be 'load'")
        if "load" in techniques[0 if self.parent else 1 :]:
            raise ValueError("'load' can only be the first step of a recipe without a parent")
        for technique in ("distill", "lora"):
            if self.parent is None and technique in techniques:
                raise ValueError(f"'{technique}' learns from the parent: name one")
        if "quantize" in techniques[:-1]:
            raise ValueError("'quantize' must be the last step: quantized weights can be neither pruned nor trained")
        for index, earlier in enumerate(self.steps):
            for later in self.steps[index + 1 :]:
                if reason := _conflict(earlier, later):
                    raise ValueError(reason)
        return self

    @property
    def uses_text(self) -> bool:
        """Whether a step may calibrate or train on text."""
        return any(not isinstance(step, Load | Cast) for step in self.steps)

    @property
    def completions(self) -> tuple[Distill, ...]:
        """Distill steps that train on completions by the parent, see `compression.distill.teacher_completions`."""
        return tuple(step for step in self.steps if isinstance(step, Distill) and step.data == "teacher")

    def planned_steps(self) -> tuple[CardStep, ...]:
        """The steps as a card will list them, as far as known before they run."""
        return tuple(
            CardStep(technique=step.technique, parameters=step.model_dump(exclude={"technique"}), tool="")
            for step in self.steps
        )


def _conflict(earlier: Step, later: Step) -> str | None:
    """Why `later` cannot follow `earlier`, or None."""
    if isinstance(earlier, Sparsify):
        if isinstance(later, Distill | Lora):
            return f"'{later.technique}' would fill the zeros of 'sparsify' again: train first, then sparsify"
        if isinstance(later, Prune | Sparsify):
            return f"'{later.technique}' after 'sparsify' would break its pattern of zeros: prune first, sparsify once"
        if isinstance(later, Quantize) and later.method == "gptq":
            return "gptq moves the error of rounding into the zeros of 'sparsify': quantize with method rtn or awq"
    vocabulary = isinstance(earlier, Prune) and earlier.vocabulary is not None
    if vocabulary and isinstance(later, Distill | Lora):
        return f"'{later.technique}' needs the parent's vocabulary: train first, then prune the vocabulary"
    return None


def check_parent_steps(recipe: Recipe, parent: Iterable[CardStep]) -> None:
    """Refuse steps that would undo the steps of the parent or, as far as they are known, of its ancestors.

    Args:
        parent: the steps of their cards.

    Raises:
        RecipeError: the parent is quantized, or a step would destroy its pattern of zeros.
    """
    parent_techniques = {step.technique for step in parent}
    if "quantize" in parent_techniques:
        raise RecipeError(
            f"the recipe '{recipe.name}' cannot start from '{recipe.parent}': its weights are quantized; "
            "quantize last, in a recipe of its own"
        )
    if "sparsify" in parent_techniques:
        zeros = Sparsify(technique="sparsify")
        for step in recipe.steps:
            if reason := _conflict(zeros, step):
                raise RecipeError(f"the recipe '{recipe.name}' cannot start from '{recipe.parent}': {reason}")


def load_recipe(file: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: missing, not YAML, or with a field that is unknown or out of range.
    """
    try:
        document = read_yaml(file)
        return Recipe.model_validate(document.data)
    except YamlError as error:
        raise RecipeError(f"the recipe cannot be read or is not valid YAML: {error}") from error
    except ValidationError as error:
        raise RecipeError(f"the recipe is wrong: {document.problem(error)}") from error


def recipe_key(recipe: Recipe, source: str, parent_key: str | None, text: str) -> str:
    """Content address of the weights that `recipe` builds: sha256, hex.

    Args:
        source: identity of the model source, see `source.identity`.
        parent_key: key of the variant it starts from.
        text: identity of the calibration and training text; without effect on recipes that use none.
    """
    steps = [step.model_dump(mode="json", exclude_none=True) for step in recipe.steps]
    content = {
        "format": FORMAT,
        "recipe": {**recipe.model_dump(mode="json", exclude={"name"}), "steps": steps},
        "source": source,
        "parent": parent_key,
        "text": text if recipe.uses_text else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
