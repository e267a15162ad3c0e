"""The mathematics of distillation: functions of tensors that return a mean over tokens, in nats.

A distribution is given by its log-probabilities, (tokens, buckets). The buckets are the vocabulary, or the teacher's
most probable tokens and one more for all the others; the divergences do not care which.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Divergence = Literal["forward", "reverse", "js"]


@dataclass(frozen=True, slots=True)
class TopK:
    """A distribution over the vocabulary, reduced to its most probable tokens.

    `ids` is (tokens, k). `log_probs` is (tokens, k + 1) with the share of all other tokens last, or (tokens, k) when the
    k tokens are the whole vocabulary and nothing is left.
    """

    ids: Tensor
    log_probs: Tensor


def soften(logits: Tensor, tau: float) -> Tensor:
    """log softmax(z / tau): log-probabilities of logits (tokens, vocabulary) at temperature `tau`."""
    return functional.log_softmax(logits / tau, dim=-1)


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """H(p, q) = -sum p log q. Its gradient for q is that of KL(p || q); it is larger by p's own entropy."""
    return -(p.exp() * q).sum(-1).mean()


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum p (log p - log q): what a student q pays where the teacher p puts mass and it does not."""
    return (p.exp() * (p - q)).sum(-1).mean()


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p): what a student q pays where it puts mass and the teacher p does not (Gu et al. 2024, MiniLLM)."""
    return forward_kl(q, p)


def jensen_shannon(p: Tensor, q: Tensor, weight: float = 0.5) -> Tensor:
    """Generalized Jensen-Shannon divergence, w KL(p || m) + (1 - w) KL(q || m) with m = w p + (1 - w) q.

    Between 0 and the entropy of (w, 1 - w), log 2 for w = 1/2; KL(p || q) in the limit w -> 0 and KL(q || p) for w -> 1, when
    divided by w (1 - w) (Agarwal et al. 2024, On-Policy Distillation of Language Models, equation 1).
    """
    m = torch.logaddexp(p + math.log(weight), q + math.log1p(-weight))
    return weight * forward_kl(p, m) + (1 - weight) * forward_kl(q, m)


def top_k(log_probs: Tensor, k: int) -> TopK:
    """The `k` most probable tokens of log-probabilities (tokens, vocabulary) and, last, the share of all others."""
    ids = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1).indices
    return TopK(ids, to_buckets(log_probs, ids))


def to_buckets(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (tokens, vocabulary) of the tokens `ids` (tokens, k) and, last, of all others together.

    Merging buckets cannot increase a KL divergence (data-processing inequality; Cover & Thomas, Elements of Information
    Theory, section 2.8). The others' share is summed, not taken as 1 - the rest: near certainty that would be 0.
    """
    top = log_probs.gather(-1, ids)
    if ids.shape[-1] == log_probs.shape[-1]:
        return top
    others = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top, others], dim=-1)


def distillation_loss(
    student: Tensor,
    teacher: Tensor | TopK,
    labels: Tensor,
    alpha: float,
    beta: float,
    tau: float,
    scale_by_tau: bool = True,
    divergence: Divergence = "forward",
    js_weight: float = 0.5,
) -> Tensor:
    """Hinton et al. 2015, Distilling the Knowledge in a Neural Network:

    L = alpha * H(y, softmax(z_s)) + beta * H(softmax(z_t / tau), softmax(z_s / tau))

    Args:
        student: logits z_s, (tokens, vocabulary).
        teacher: logits z_t, same shape, or the top of softmax(z_t / tau); no gradient flows into them.
        labels: next tokens y, (tokens,).
        scale_by_tau: multiply the second term by tau^2. Its gradient shrinks with 1 / tau^2 (1 / tau from the student's
            softening, 1 / tau because softer distributions are closer), so that keeps its weight for every tau.
        divergence: the second term is H ("forward", the formula above), KL(student || teacher) ("reverse") or the
            Jensen-Shannon divergence with `js_weight` on the teacher ("js"), of the softened distributions.

    Returns:
        The mean over tokens, a scalar.
    """
    loss = student.new_zeros(())
    if alpha:
        loss = loss + alpha * functional.cross_entropy(student, labels)
    if beta:
        softened = soften(student, tau)
        if isinstance(teacher, TopK):
            target, softened = teacher.log_probs.detach(), to_buckets(softened, teacher.ids)
        else:
            target = soften(teacher.detach(), tau)
        match divergence:
            case "forward":
                soft = cross_entropy(target, softened)
            case "reverse":
                soft = reverse_kl(target, softened)
            case "js":
                soft = jensen_shannon(target, softened, js_weight)
        loss = loss + beta * (tau**2 if scale_by_tau else 1.0) * soft
    return loss


def hidden_loss(student: Tensor, teacher: Tensor, projection: Tensor | None = None) -> Tensor:
    """Mean squared error between W h_s and h_t, in units of h_t's mean square, per token.

    Romero et al. 2015, FitNets; Jiao et al. 2020, TinyBERT, equation 8. Relative to the teacher's size because that differs
    between layers by orders of magnitude, and in language models between a first token and all others (Sun et al. 2024,
    Massive Activations in Large Language Models): one weight then suits all.

    Args:
        student: hidden states h_s, (..., student width).
        teacher: hidden states h_t, (..., teacher width); no gradient flows into them.
        projection: W, (teacher width, student width); None when the widths are equal.
    """
    teacher = teacher.detach()
    projected = student if projection is None else functional.linear(student, projection)
    error, size = (projected - teacher).square().mean(-1), teacher.square().mean(-1)
    return (error / size.clamp_min(torch.finfo(size.dtype).tiny)).mean()


def matched_layers(student: int, teacher: int) -> dict[int, int]:
    """For every layer of a student with `student` layers the one of the teacher it stands for: evenly, last to last."""
    return {layer: (layer + 1) * teacher // student - 1 for layer in range(student)}
