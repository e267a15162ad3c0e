"""Distillation: train a student to give the teacher's distribution, with checkpoints to resume from."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from compression.hardware import compute_dtype
from compression.progress import Report
from compression.recipe import Distill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_FILE = "distill.pt"


class DistillError(Exception):
    """Training that went wrong and cannot go on."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a distillation did."""

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, tau: float
) -> Tensor:
    """Hinton et al. 2015, Distilling the Knowledge in a Neural Network, per token and in nats.

    L = alpha * H(y, softmax(z_s)) + beta * tau^2 * H(softmax(z_t / tau), softmax(z_s / tau))

    tau^2 keeps the second term's gradient at the same scale for every tau. Its gradient for z_s is that of
    KL(teacher || student), which differs from H by the teacher's own entropy, a constant.

    Args:
        student: logits z_s, (tokens, vocabulary).
        teacher: logits z_t, same shape; no gradient flows into them.
        labels: next tokens y, (tokens,).

    Returns:
        The mean over tokens, a scalar.
    """
    loss = student.new_zeros(())
    if alpha:
        loss = loss + alpha * functional.cross_entropy(student, labels)
    if beta:
        target = functional.softmax(teacher.detach() / tau, dim=-1)
        loss = loss + beta * tau**2 * functional.cross_entropy(student / tau, target)
    return loss


def learning_rate_factor(fraction: float, warmup: float) -> float:
    """Share of the peak learning rate when `fraction` of the budget is spent: linear warm-up, then a cosine to 0."""
    if fraction < warmup:
        return fraction / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - warmup) / (1 - warmup))))


def distill(
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    sequences: Sequence[Sequence[int]],
    settings: Distill,
    seed: int,
    checkpoints: Path,
    report: Report,
) -> Trained:
    """Train `student` in place until the budget is spent, going on from the checkpoint in `checkpoints` if there is one.

    Forward and backward in what the hardware is fast in, AdamW on float32 copies of the weights: where that is bfloat16,
    half the memory traffic of autocast, which converts every weight again in every step. The teacher is frozen.

    Args:
        sequences: token ids, all of one length; taken in an order given by `seed`, again and again if need be.

    Raises:
        DistillError: the loss is not a number; earlier checkpoints stay.
    """
    dtype = getattr(torch, compute_dtype())
    student.to(dtype).train()
    teacher.to(dtype).eval().requires_grad_(False)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True)
    state = _State()
    if (file := checkpoints / CHECKPOINT_FILE).exists():
        state = _resume(file, masters, optimizer)
        _copy(masters, weights)

    batches = _batches(torch.tensor(sequences), settings.batch, seed, skip=state.steps)
    batch_tokens = settings.batch * len(sequences[0])
    started = time.monotonic() - state.seconds
    while (fraction := _spent(settings, state)) < 1:
        batch = next(batches)
        # half a step ahead, so that the first rate is not 0
        ahead = fraction * (1 + 0.5 / state.steps) if state.steps else settings.warmup / 10
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(ahead, settings.warmup)
        loss = _step(student, teacher, batch, settings)
        if not math.isfinite(loss):
            raise DistillError(
                f"the loss became {loss} at step {state.steps + 1}: lower the learning rate ({settings.learning_rate:g})"
            )
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, settings.clip_norm)
        optimizer.step()
        _copy(masters, weights)

        state.steps += 1
        state.tokens += batch_tokens
        state.seconds = time.monotonic() - started
        state.first_loss = loss if state.steps == 1 else state.first_loss
        state.last_loss = loss if state.steps == 1 else 0.9 * state.last_loss + 0.1 * loss
        _report(report, settings, state)
        if state.steps % settings.checkpoint_every == 0 and _spent(settings, state) < 1:
            _save(file, masters, optimizer, state)
    student.eval()
    return Trained(**asdict(state))


@dataclass(slots=True)
class _State:
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = 0.0
    last_loss: float = 0.0


def _step(student: "PreTrainedModel", teacher: "PreTrainedModel", batch: Tensor, settings: Distill) -> float:
    """Forward and backward of one batch of token ids (sequences, length); returns the loss."""
    labels = batch[:, 1:].flatten()
    with torch.inference_mode():
        target = teacher(batch, use_cache=False).logits[:, :-1].flatten(0, 1) if settings.beta else None
    logits = student(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
    total = 0.0
    # In slices, so that the float32 copies of (tokens, vocabulary) stay small; `gradient` is what autograd would give.
    gradient = torch.empty_like(logits)
    for rows in torch.arange(len(labels)).split(256):
        part = logits.detach()[rows].float().requires_grad_()
        with_target = target[rows].float() if target is not None else part.detach()
        loss = distillation_loss(part, with_target, labels[rows], settings.alpha, settings.beta, settings.tau)
        loss = loss * (len(rows) / len(labels))
        loss.backward()
        gradient[rows] = part.grad.to(gradient.dtype)
        total += loss.item()
    if math.isfinite(total):
        logits.backward(gradient)
    return total


def _batches(sequences: Tensor, batch: int, seed: int, skip: int) -> Iterator[Tensor]:
    """Endless batches (batch, length): every sequence once per round, each round in its own order; `skip` are left out."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.empty(0, dtype=torch.long)
    while True:
        held = torch.cat([held, torch.randperm(len(sequences), generator=generator)])
        while len(held) >= batch:
            rows, held = held[:batch], held[batch:]
            if skip:
                skip -= 1
                continue
            yield sequences[rows]


def _spent(settings: Distill, state: _State) -> float:
    by_tokens = state.tokens / settings.tokens if settings.tokens else 0.0
    by_time = state.seconds / (settings.minutes * 60) if settings.minutes else 0.0
    return max(by_tokens, by_time)


def _report(report: Report, settings: Distill, state: _State) -> None:
    spent = _spent(settings, state)
    total = math.ceil(state.steps / spent) if 0 < spent < 1 else state.steps
    report("distill", state.steps, total, "steps")


@torch.no_grad()
def _copy(masters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for master, weight in zip(masters, weights, strict=True):
        weight.copy_(master)


def _save(file: Path, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer, state: _State) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    content = {"weights": list(masters), "optimizer": optimizer.state_dict(), "state": asdict(state)}
    with scratch.open("wb") as stream:  # a full disk then raises OSError here instead of torch's own error
        torch.save(content, stream)
    scratch.replace(file)


def _resume(file: Path, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> _State:
    content = torch.load(file, weights_only=True)
    _copy(content["weights"], masters)
    optimizer.load_state_dict(content["optimizer"])
    return _State(**content["state"])
