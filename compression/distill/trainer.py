"""Distillation: train a student on the teacher's distribution, with checkpoints to resume from.

One loop, alone or in the processes of `accelerate launch`: each takes its share of every batch, and gradients are averaged.
"""

import hashlib
import math
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.distill.losses import TopK, distillation_loss, hidden_loss, matched_layers
from compression.distill.teacher import Teacher, TopKCache
from compression.errors import UserError
from compression.hardware import compute_dtype
from compression.progress import Report
from compression.recipe.schema import Distill
from compression.text import sequences_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillError(UserError):
    """Training that failed and cannot continue."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Result of a distillation run."""

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float


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
    cache: TopKCache | None = None,
) -> TrainingResult:
    """Train `student` in place until the budget is spent, going on from its checkpoint in `checkpoints` if there is one.

    On the GPU when there is one; both models are left on the CPU. Forward and backward in what the hardware is fast in,
    AdamW on float32 copies of the weights: where that is bfloat16, half the memory traffic of autocast, which converts
    every weight again in every step. The teacher is frozen. Interrupted and resumed, a training with a budget in tokens
    gives the weights it would have given at once.

    Args:
        sequences: token ids, all of one length; taken in an order given by `seed`, again and again if need be.
        cache: stores the teacher's top-k distributions, for `settings.teacher_top_k`.

    Raises:
        DistillError: the loss or its gradient is not a number (earlier checkpoints stay), the checkpoint is damaged, or the
            settings do not fit the models.
        CacheError: a file of the cache is damaged.
    """
    group = ProcessGroup()
    dtype = torch.bfloat16 if group.device.type == "cuda" else getattr(torch, compute_dtype())
    group.check_batch(settings.batch)
    layers = _layer_mapping(student, teacher, settings)
    student.to(group.device, dtype).train()
    teacher.to(group.device, dtype)
    if settings.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learner = _StudentTrainer(student, Teacher(teacher, settings, set(layers.values()), cache), settings, layers, seed)
    optimizer = torch.optim.AdamW(
        learner.masters, lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    file = checkpoints / f"distill-{_identity(student, sequences, settings, seed)}.pt"
    state = _resume(file, learner, optimizer) if file.exists() else _State()

    batches = _batches(torch.tensor(sequences), settings.batch, seed, skip=state.steps)
    started = time.monotonic() - state.seconds
    while (fraction := _budget_fraction(settings, state)) < 1:
        # half a step ahead, so that the first rate is not 0
        fraction_at_step = fraction * (1 + 0.5 / state.steps) if state.steps else settings.warmup / 10
        for param_group in optimizer.param_groups:
            param_group["lr"] = settings.learning_rate * learning_rate_factor(fraction_at_step, settings.warmup)
        # dropout, where a model has any, follows the step: a resumed training draws what it would have drawn
        torch.manual_seed(seed + group.count * state.steps + group.index)
        loss = group.reduce_sum(learner.backward(group.shard(next(batches)), settings.batch))
        group.all_reduce([master.grad for master in learner.masters if master.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(learner.masters, settings.clip_norm).item()
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise DistillError(
                    f"the {name} became {value} at step {state.steps + 1}: "
                    f"lower the learning rate ({settings.learning_rate:g})"
                )
        optimizer.step()
        optimizer.zero_grad()
        learner.copy_to_student()

        state.steps += 1
        state.tokens += settings.batch * len(sequences[0])
        state.seconds = group.broadcast(time.monotonic() - started)
        state.first_loss = loss if state.steps == 1 else state.first_loss
        state.last_loss = loss if state.steps == 1 else 0.9 * state.last_loss + 0.1 * loss
        if group.index == 0:
            _report(report, settings, state)
            if state.steps % settings.checkpoint_every == 0 and _budget_fraction(settings, state) < 1:
                _save(file, learner.masters, optimizer, state)
    if settings.gradient_checkpointing:
        student.gradient_checkpointing_disable()
    student.eval().to("cpu")
    teacher.to("cpu")
    return TrainingResult(**asdict(state))


@dataclass(slots=True)
class _State:
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = 0.0
    last_loss: float = 0.0


class _StudentTrainer:
    """The student with the float32 copies that the optimizer steps, and the projections of its hidden states."""

    def __init__(
        self, student: "PreTrainedModel", teacher: Teacher, settings: Distill, layers: Mapping[int, int], seed: int
    ) -> None:
        self._student, self._teacher, self._settings, self._layers = student, teacher, settings, layers
        self._weights = [weight for weight in student.parameters() if weight.requires_grad]
        self._projections: dict[int, Tensor] = {}
        width, target_width = student.config.hidden_size, teacher.width
        if width != target_width:
            generator = torch.Generator().manual_seed(seed)
            for layer in layers:  # an orthogonal one keeps the states' size
                start = torch.nn.init.orthogonal_(torch.empty(target_width, width), generator=generator)
                self._projections[layer] = start.to(student.device).requires_grad_()
        self.masters = [weight.detach().float() for weight in self._weights] + list(self._projections.values())

    def backward(self, batch: Tensor, batch_size: int) -> float:
        """Add the gradient of `batch`, token ids (sequences, length), to the masters'; returns its part of the loss.

        Both are parts of the mean over a batch of `batch_size` sequences.
        """
        total = 0.0
        for part in batch.split(self._settings.micro_batch or len(batch)):
            total += self._backward(part.to(self._student.device), len(part) / batch_size)
            for master, weight in zip(self.masters, self._weights, strict=False):
                if weight.grad is not None:
                    gradient, weight.grad = weight.grad.float(), None
                    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        return total

    @torch.no_grad()
    def copy_to_student(self) -> None:
        """Copy the master weights to the student."""
        for master, weight in zip(self.masters, self._weights, strict=False):
            weight.copy_(master)

    def _backward(self, batch: Tensor, share: float) -> float:
        settings = self._settings
        labels = batch[:, 1:].flatten()
        targets = self._teacher(batch)
        output = self._student(batch, use_cache=False, output_hidden_states=bool(self._layers))
        ends, gradients, total = [], [], 0.0
        if settings.alpha or settings.beta:
            logits = output.logits[:, :-1].flatten(0, 1)
            # In slices, so that the float32 copies of (tokens, vocabulary) stay small; autograd would give the same.
            gradient = torch.empty_like(logits)
            for rows in torch.arange(len(labels), device=batch.device).split(256):
                part = logits.detach()[rows].float().requires_grad_()
                loss = distillation_loss(
                    part,
                    part if targets.soft is None else _rows(targets.soft, rows),
                    labels[rows],
                    settings.alpha,
                    settings.beta,
                    settings.tau,
                    settings.scale_by_tau,
                    settings.divergence,
                    settings.js_weight,
                )
                loss = loss * (share * len(rows) / len(labels))
                loss.backward()
                gradient[rows] = part.grad.to(gradient.dtype)
                total += loss.item()
            ends, gradients = [logits], [gradient]
        if self._layers:
            matches = [
                hidden_loss(
                    output.hidden_states[student_layer + 1].float(),
                    targets.hidden[teacher_layer].float(),
                    self._projections.get(student_layer),
                )
                for student_layer, teacher_layer in self._layers.items()
            ]
            hidden = share * settings.hidden * torch.stack(matches).mean()
            total += hidden.item()
            ends.append(hidden)
            gradients.append(torch.ones_like(hidden))
        torch.autograd.backward(ends, gradients)
        return total


class ProcessGroup:
    """The processes that train together; one, unless `accelerate launch` started this."""

    def __init__(self) -> None:
        from accelerate import PartialState

        # explicit: on a CPU it would otherwise not detect the other processes
        state = PartialState(cpu=not torch.cuda.is_available())
        self.device, self.count, self.index = state.device, state.num_processes, state.process_index

    def check_batch(self, sequences: int) -> None:
        """Raise a DistillError unless each process has a sequence of a batch of `sequences`."""
        if self.count > sequences:
            raise DistillError(f"{self.count} processes cannot share a batch of {sequences}: raise batch")

    def shard(self, batch: Tensor) -> Tensor:
        """This process's sequences of a batch."""
        return batch[self.index :: self.count]

    def reduce_sum(self, value: float) -> float:
        """The sum of every process's `value`."""
        from accelerate.utils import reduce

        return value if self.count == 1 else reduce(torch.tensor(value, device=self.device), "sum").item()

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        from accelerate.utils import reduce

        if self.count > 1:
            for tensor in tensors:
                tensor.copy_(reduce(tensor, "sum"))

    def broadcast(self, value: float) -> float:
        """Value of the first process, so that all stop at the same step."""
        from accelerate.utils import broadcast

        return value if self.count == 1 else broadcast(torch.tensor(value, device=self.device)).item()


def _layer_mapping(student: "PreTrainedModel", teacher: "PreTrainedModel", settings: Distill) -> dict[int, int]:
    """Which layer of the student learns which of the teacher's."""
    if not settings.hidden:
        return {}
    student_count, teacher_count = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    layers = settings.hidden_layers or matched_layers(student_count, teacher_count)
    for role, indices, layer_count in (
        ("student", layers.keys(), student_count),
        ("teacher", layers.values(), teacher_count),
    ):
        if max(indices) >= layer_count:
            raise DistillError(
                f"hidden_layers names layer {max(indices)}: the {role} has layers 0 to {layer_count - 1}"
            )
    return dict(layers)


def _rows(soft: Tensor | TopK, rows: Tensor) -> Tensor | TopK:
    return TopK(soft.ids[rows], soft.log_probs[rows]) if isinstance(soft, TopK) else soft[rows].float()


def _batches(sequences: Tensor, batch: int, seed: int, skip: int) -> Iterator[Tensor]:
    """Endless batches (batch, length): every sequence once per round, each round in its own order; `skip` are left out."""
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.long)
    while True:
        pending = torch.cat([pending, torch.randperm(len(sequences), generator=generator)])
        while len(pending) >= batch:
            rows, pending = pending[:batch], pending[batch:]
            if skip:
                skip -= 1
                continue
            yield sequences[rows]


def _budget_fraction(settings: Distill, state: _State) -> float:
    by_tokens = state.tokens / settings.tokens if settings.tokens else 0.0
    by_time = state.seconds / (settings.minutes * 60) if settings.minutes else 0.0
    return max(by_tokens, by_time)


def _report(report: Report, settings: Distill, state: _State) -> None:
    spent = _budget_fraction(settings, state)
    total = math.ceil(state.steps / spent) if 0 < spent < 1 else state.steps
    report("distill", state.steps, total, "steps")


def _save(file: Path, masters: Sequence[Tensor], optimizer: torch.optim.Optimizer, state: _State) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    content = {"weights": list(masters), "optimizer": optimizer.state_dict(), "state": asdict(state)}
    with scratch.open("wb") as stream:  # a full disk then raises OSError here instead of torch's own error
        torch.save(content, stream)
    scratch.replace(file)


@torch.no_grad()
def _resume(file: Path, learner: _StudentTrainer, optimizer: torch.optim.Optimizer) -> _State:
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        for saved, master in zip(content["weights"], learner.masters, strict=True):
            master.copy_(saved)
        optimizer.load_state_dict(content["optimizer"])
        state = _State(**content["state"])
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DistillError(f"the checkpoint {file} is damaged: remove it to train from the start") from error
    learner.copy_to_student()
    return state


def _identity(student: "PreTrainedModel", sequences: Sequence[Sequence[int]], settings: Distill, seed: int) -> str:
    """Names the checkpoint, so that another training's is never taken for this one's."""
    shapes = [tuple(weight.shape) for weight in student.parameters()]
    content = f"{settings.model_dump_json()} {sequences_digest(sequences)} {seed} {shapes}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
