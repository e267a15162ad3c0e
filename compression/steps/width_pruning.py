"""Width pruning: fewer attention heads and MLP neurons in every layer, and what stays is fitted to make up for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.steps.model_parts import Done, PruneError, check_finite, decoder_layers, run_with_hooks

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

DAMPENING = 0.01  # of the mean second moment, as in GPTQ: the fit stays stable where inputs are nearly the same


@torch.inference_mode()
def second_moments(
    model: "PreTrainedModel", modules: Sequence[nn.Linear], sequences: Sequence[Sequence[int]], done: Done
) -> list[Tensor]:
    """E[x x^T] of the input x of each of `modules` over all tokens of `sequences`: (inputs, inputs), float32.

    Memory: 4 * inputs^2 bytes a module.
    """
    totals = [torch.zeros(module.in_features, module.in_features) for module in modules]

    def attach_hook(index: int) -> "RemovableHandle":
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).float()
            totals[index].addmm_(x.T, x)

        return modules[index].register_forward_pre_hook(hook)

    run_with_hooks(model, sequences, [attach_hook(index) for index in range(len(modules))], done)
    tokens = sum(len(sequence) for sequence in sequences)
    for total in totals:
        check_finite(total)
    return [total / tokens for total in totals]


def influence(weight: Tensor, moments: Tensor, group: int) -> Tensor:
    """What each group of `group` neighbouring inputs adds to the output: E||W_g x_g||^2 = tr(W_g E[x_g x_g^T] W_g^T).

    Args:
        weight: (outputs, inputs).
        moments: E[x x^T], (inputs, inputs).

    Returns:
        (inputs / group,)
    """
    columns = weight.float().unflatten(1, (-1, group))  # (outputs, groups, group)
    blocks = (
        moments.unflatten(0, (-1, group)).unflatten(2, (-1, group)).diagonal(dim1=0, dim2=2)
    )  # (group, group, groups)
    return torch.einsum("ogi,ijg,ogj->g", columns, blocks, columns)


def refit(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The matrix on the inputs `kept` that comes closest to `weight` on all of them: argmin_V E||W x - V x_K||^2.

    V = W M_{:,K} (M_{KK} + lambda I)^-1 with M = E[x x^T]: the least squares reconstruction of He et al. 2017, Channel
    Pruning for Accelerating Very Deep Neural Networks, with a ridge.

    Args:
        weight: (outputs, inputs).
        kept: indices, (n,).

    Returns:
        (outputs, n), in the type of `weight`.
    """
    gram = moments[kept][:, kept].double()
    gram += DAMPENING * moments.diagonal().mean().double().clamp(min=1e-12) * torch.eye(len(kept), dtype=torch.double)
    target = weight.double() @ moments[:, kept].double()
    return torch.linalg.solve(gram, target.T).T.to(weight.dtype)


@torch.no_grad()
def keep_neurons(model: "PreTrainedModel", sequences: Sequence[Sequence[int]], width: int, done: Done) -> list[float]:
    """Leave the `width` most influential neurons in every MLP.

    Returns:
        The share of the MLP's output energy that the kept neurons had, layer by layer.
    """
    blocks = [_submodule(layer, "mlp", ("gate_proj", "up_proj", "down_proj")) for layer in decoder_layers(model)]
    moments = second_moments(model, [block.down_proj for block in blocks], sequences, done)
    shares = []
    for block, moment in zip(blocks, moments, strict=True):
        scores = influence(block.down_proj.weight, moment, 1)
        kept = scores.topk(width).indices.sort().values
        _set_weight(block.down_proj, refit(block.down_proj.weight, moment, kept))
        for linear in (block.gate_proj, block.up_proj):
            _keep_rows(linear, kept)
        block.intermediate_size = width
        shares.append(round(float(scores[kept].sum() / scores.sum().clamp(min=1e-12)), 4))
    model.config.intermediate_size = width
    return shares


@torch.no_grad()
def keep_heads(model: "PreTrainedModel", sequences: Sequence[Sequence[int]], heads: int, done: Done) -> list[list[int]]:
    """Leave `heads` query heads in every layer, in whole groups that share a key-value head: the most influential ones.

    Returns:
        The key-value heads that were kept, layer by layer.
    """
    config = model.config
    queries_per_kv_head = config.num_attention_heads // config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    blocks = [
        _submodule(layer, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")) for layer in decoder_layers(model)
    ]
    moments = second_moments(model, [block.o_proj for block in blocks], sequences, done)
    kept_heads = []
    for block, moment in zip(blocks, moments, strict=True):
        scores = influence(block.o_proj.weight, moment, queries_per_kv_head * size)
        kept = scores.topk(heads // queries_per_kv_head).indices.sort().values
        queries, keys = _expand_groups(kept, queries_per_kv_head * size), _expand_groups(kept, size)
        _set_weight(block.o_proj, refit(block.o_proj.weight, moment, queries))
        _keep_rows(block.q_proj, queries)
        _keep_rows(block.k_proj, keys)
        _keep_rows(block.v_proj, keys)
        kept_heads.append(kept.tolist())
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads, heads // queries_per_kv_head, size
    return kept_heads


def _submodule(layer: nn.Module, name: str, linears: Sequence[str]) -> nn.Module:
    part = getattr(layer, name, None)
    if part is None or not all(isinstance(getattr(part, linear, None), nn.Linear) for linear in linears):
        raise PruneError(f"cannot prune a {type(layer).__name__}: it has no {name} made of {', '.join(linears)}")
    return part


def _expand_groups(groups: Tensor, size: int) -> Tensor:
    """Indices of all members of `groups` of `size` neighbours each."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    _set_weight(linear, linear.weight[rows])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone())


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.clone().contiguous())
    linear.out_features, linear.in_features = weight.shape
