"""The mathematics of distillation against values calculated by hand, in float64, and against numerical gradients."""

import math
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402

from compression.distill.losses import (  # noqa: E402
    TopK,
    cross_entropy,
    distillation_loss,
    forward_kl,
    hidden_loss,
    jensen_shannon,
    matched_layers,
    reverse_kl,
    soften,
    to_buckets,
    top_k,
)

LABELS = torch.tensor([3, 0, 6, 1, 1])


def logits(seed: int, scale: float = 2.0) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(5, 7, generator=generator, dtype=torch.float64)


def log(*probabilities: float) -> "torch.Tensor":
    return torch.tensor([probabilities], dtype=torch.float64).log()


P, Q = log(3 / 4, 1 / 4), log(1 / 4, 3 / 4)
DIVERGENCES = [forward_kl, reverse_kl, jensen_shannon, lambda p, q: jensen_shannon(p, q, 0.1)]


@pytest.mark.parametrize(
    ("value", "by_hand"),
    [
        (cross_entropy(P, Q), 3 / 4 * math.log(4) + 1 / 4 * math.log(4 / 3)),
        (forward_kl(P, Q), 1 / 2 * math.log(3)),
        (forward_kl(P, log(1 / 2, 1 / 2)), 3 / 4 * math.log(3) - math.log(2)),
        (reverse_kl(P, log(1 / 2, 1 / 2)), math.log(2) - 1 / 2 * math.log(3)),
        # m is uniform: both halves are KL((3/4, 1/4) || (1/2, 1/2))
        (jensen_shannon(P, Q), 3 / 4 * math.log(3) - math.log(2)),
        # w = 1/4: m = (3/8, 5/8)
        (
            jensen_shannon(P, Q, 1 / 4),
            1 / 4 * (3 / 4 * math.log(2) + 1 / 4 * math.log(2 / 5))
            + 3 / 4 * (1 / 4 * math.log(2 / 3) + 3 / 4 * math.log(6 / 5)),
        ),
        # softened with tau = 2: odds of 9 become odds of 3
        (soften(log(9 / 10, 1 / 10), 2.0)[0, 0], math.log(3 / 4)),
        (hidden_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])), (1 + 4) / (4 + 1)),
        # W = (2, 1): 2 * 1 + 1 * 3 = 5 against 4
        (hidden_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0]]), torch.tensor([[2.0, 1.0]])), 1 / 16),
    ],
)
def test_by_hand(value: "torch.Tensor", by_hand: float) -> None:
    assert value.item() == pytest.approx(by_hand)


def test_the_hard_term_by_hand() -> None:
    student = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    loss = distillation_loss(student, torch.zeros_like(student), torch.tensor([1]), alpha=2.0, beta=0.0, tau=1.0)
    assert loss.item() == pytest.approx(2 * -math.log(3 / 4))


@pytest.mark.parametrize(("scale_by_tau", "factor"), [(True, 4), (False, 1)])
def test_the_soft_term_by_hand(scale_by_tau: bool, factor: int) -> None:
    """tau = 2: teacher softmax(log 9 / 2, 0) = (3/4, 1/4), student uniform, so H = log 2."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
    loss = distillation_loss(student, teacher, torch.tensor([0]), 0.0, 1.0, 2.0, scale_by_tau)
    assert loss.item() == pytest.approx(factor * math.log(2))


def test_both_terms_add_up() -> None:
    parts = [distillation_loss(logits(1), logits(2), LABELS, a, b, 3.0) for a, b in ((0.3, 0.0), (0.0, 0.7))]
    assert distillation_loss(logits(1), logits(2), LABELS, 0.3, 0.7, 3.0).item() == pytest.approx(sum(parts).item())


def test_hintons_gradient_is_the_analytic_one() -> None:
    """dL/dz_s = (alpha (softmax(z_s) - y) + beta tau (softmax(z_s / tau) - softmax(z_t / tau))) / tokens."""
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    distillation_loss(student, teacher, LABELS, 0.4, 0.6, 2.5).backward()
    hard = student.softmax(-1) - torch.nn.functional.one_hot(LABELS, 7)
    soft = (student / 2.5).softmax(-1) - (teacher / 2.5).softmax(-1)
    assert torch.allclose(student.grad, (0.4 * hard + 0.6 * 2.5 * soft) / 5)
    assert teacher.grad is None


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("k", [None, 3, 7])
def test_gradients_are_the_numerical_ones(divergence: str, k: int | None) -> None:
    # two tokens: the numerical gradient takes two evaluations for each logit
    student, other, labels = logits(1)[:2], logits(2)[:2], LABELS[:2]
    teacher = other if k is None else top_k(soften(other, 2.5), k)
    options = {"alpha": 0.4, "beta": 0.6, "tau": 2.5, "divergence": divergence, "js_weight": 0.3}
    assert gradcheck(lambda z: distillation_loss(z, teacher, labels, **options), student.requires_grad_())


def test_the_gradient_of_hidden_states_and_of_their_projection_is_the_numerical_one() -> None:
    student, teacher, projection = logits(1)[:, :4], logits(2), logits(3)[:4].T.contiguous()
    assert gradcheck(lambda s, w: hidden_loss(s, teacher, w), (student.requires_grad_(), projection.requires_grad_()))
    assert hidden_loss(student, torch.nn.functional.linear(student, projection), projection).item() == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_are_zero_and_flat_at_equality_and_positive_elsewhere(divergence: Callable) -> None:
    p, z = soften(logits(1), 1.0), logits(1).requires_grad_()
    at_equality = divergence(p, soften(z, 1.0))
    at_equality.backward()
    assert at_equality.item() == pytest.approx(0, abs=1e-12)
    assert z.grad.abs().max() < 1e-12
    assert divergence(p, soften(logits(2), 1.0)) > 0.01


def test_cross_entropy_is_the_kl_plus_the_teachers_entropy() -> None:
    p, q = soften(logits(1), 1.0), soften(logits(2), 1.0)
    assert cross_entropy(p, q).item() == pytest.approx((forward_kl(p, q) + cross_entropy(p, p)).item())


def test_jensen_shannon_is_bounded_and_tends_to_both_divergences() -> None:
    apart = soften(torch.tensor([[80.0, 0.0]]).double(), 1.0), soften(torch.tensor([[0.0, 80.0]]).double(), 1.0)
    assert jensen_shannon(*apart).item() == pytest.approx(math.log(2))
    p, q = soften(logits(1), 1.0), soften(logits(2), 1.0)
    assert jensen_shannon(p, q).item() == pytest.approx(jensen_shannon(q, p).item())
    assert jensen_shannon(p, q, 1e-6).item() / 1e-6 == pytest.approx(forward_kl(p, q).item(), rel=1e-3)
    assert jensen_shannon(p, q, 1 - 1e-6).item() / 1e-6 == pytest.approx(reverse_kl(p, q).item(), rel=1e-3)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_tau_squared_keeps_the_gradients_scale(divergence: str) -> None:
    """For large tau the gradient of tau^2 times the term tends to a constant; without the factor it vanishes."""

    def size(tau: float, scale_by_tau: bool) -> float:
        z = logits(1).requires_grad_()
        distillation_loss(z, logits(2), LABELS, 0.0, 1.0, tau, scale_by_tau, divergence).backward()
        return z.grad.norm().item()

    assert size(200.0, True) == pytest.approx(size(100.0, True), rel=0.02)
    assert size(200.0, False) == pytest.approx(size(100.0, False) / 4, rel=0.02)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_the_top_of_the_whole_vocabulary_gives_the_full_loss(divergence: str) -> None:
    options = (LABELS, 0.3, 0.7, 2.0, True, divergence)
    z, same = logits(1).requires_grad_(), logits(1).requires_grad_()
    whole = distillation_loss(z, logits(2), *options)
    top = distillation_loss(same, top_k(soften(logits(2), 2.0), 7), *options)
    assert top.item() == pytest.approx(whole.item())
    whole.backward()
    top.backward()
    assert torch.allclose(z.grad, same.grad)


def test_the_rest_is_one_bucket() -> None:
    found = top_k(log(0.1, 0.5, 0.1, 0.3), 2)
    assert found.ids.tolist() == [[1, 3]]
    assert found.log_probs.exp().tolist() == [pytest.approx([0.5, 0.3, 0.2])]
    assert to_buckets(log(0.4, 0.3, 0.2, 0.1), found.ids).exp().tolist() == [pytest.approx([0.3, 0.1, 0.6])]
    assert isinstance(found, TopK)


def test_the_rest_of_a_teacher_that_is_all_but_certain_is_not_nothing() -> None:
    sure = top_k(torch.log_softmax(torch.tensor([[60.0, 0.0, 0.0]]), -1), 1)
    assert sure.log_probs[0, 1].item() == pytest.approx(math.log(2) - 60, rel=1e-3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_merging_buckets_never_increases_a_divergence(divergence: Callable) -> None:
    p, q = soften(logits(1), 1.0), soften(logits(2), 1.0)
    values = [divergence(top.log_probs, to_buckets(q, top.ids)).item() for top in (top_k(p, k) for k in (1, 3, 5, 7))]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(divergence(p, q).item())


def test_layers_are_matched_evenly_and_the_last_with_the_last() -> None:
    assert matched_layers(3, 6) == {0: 1, 1: 3, 2: 5}
    assert matched_layers(2, 5) == {0: 1, 1: 4}
    assert matched_layers(4, 4) == {layer: layer for layer in range(4)}
