"""Low-rank additions to the linear layers (LoRA), through PEFT: trained while the weights are frozen, then merged into them."""

from typing import TYPE_CHECKING

import torch

from compression.errors import UserError
from compression.recipe.schema import Lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class LoraError(UserError):
    """The trained adapters are not finite numbers."""


def add_adapters(model: "PreTrainedModel", settings: Lora, seed: int) -> "PeftModel":
    """`model` with W x + scale * B A x for every linear layer but `lm_head`; only A and B are trained.

    B starts at zero and A at random, given by `seed`, so that at first nothing changes (Hu et al. 2021).
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merge_adapters(model: "PeftModel") -> "PreTrainedModel":
    """The plain model with W + scale * B A for W, all of it trainable again.

    Raises:
        LoraError: the merged weights are not finite.
    """
    try:
        model_with_adapters = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise LoraError(f"the trained adapters cannot be merged: {str(error).splitlines()[0]}") from error
    return model_with_adapters.requires_grad_(True)
