"""The distillation loss against hand-computed values, and training on tiny random models."""

import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.distill import CHECKPOINT_FILE, DistillError, distill, distillation_loss, learning_rate_factor  # noqa: E402
from compression.recipe import Distill  # noqa: E402


def quiet(*_: object) -> None:
    pass


def tiny(seed: int, layers: int = 2) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config)


def settings(**changes: object) -> Distill:
    budget = {"tokens": 4 * 16 * 12, "batch": 4, "sequence_length": 16, "learning_rate": 5e-3, "warmup": 0.1}
    return Distill.model_validate({"technique": "distill", **budget, "checkpoint_every": 5, **changes})


SEQUENCES = torch.randint(64, (32, 16), generator=torch.Generator().manual_seed(0)).tolist()


def test_the_hard_term_by_hand() -> None:
    student = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    loss = distillation_loss(student, torch.zeros_like(student), torch.tensor([1]), alpha=2.0, beta=0.0, tau=1.0)
    assert loss.item() == pytest.approx(2 * -math.log(3 / 4))


def test_the_soft_term_by_hand() -> None:
    """tau = 2: teacher softmax(log 9 / 2, 0) = (3/4, 1/4), student uniform, so H = log 2 and the term is 4 log 2."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
    loss = distillation_loss(student, teacher, torch.tensor([0]), alpha=0.0, beta=1.0, tau=2.0)
    assert loss.item() == pytest.approx(4 * math.log(2))


def test_both_terms_add_up() -> None:
    student, teacher, labels = torch.randn(5, 7).double(), torch.randn(5, 7).double(), torch.arange(5)
    parts = [distillation_loss(student, teacher, labels, a, b, 3.0) for a, b in ((0.3, 0.0), (0.0, 0.7))]
    assert distillation_loss(student, teacher, labels, 0.3, 0.7, 3.0).item() == pytest.approx(sum(parts).item())


def test_the_gradient_is_the_analytic_one() -> None:
    """dL/dz_s = (alpha (softmax(z_s) - y) + beta tau (softmax(z_s / tau) - softmax(z_t / tau))) / tokens."""
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(5)
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, teacher, labels, 0.4, 0.6, 2.5), student)
    distillation_loss(student, teacher, labels, 0.4, 0.6, 2.5).backward()
    hard = student.softmax(-1) - torch.nn.functional.one_hot(labels, 7)
    soft = (student / 2.5).softmax(-1) - (teacher / 2.5).softmax(-1)
    assert torch.allclose(student.grad, (0.4 * hard + 0.6 * 2.5 * soft) / 5)
    assert teacher.grad is None


def test_the_soft_term_is_smallest_when_the_student_is_the_teacher() -> None:
    teacher = torch.randn(5, 7, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    distillation_loss(student, teacher, torch.arange(5), 0.0, 1.0, 2.0).backward()
    assert student.grad.abs().max() < 1e-12


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    assert [learning_rate_factor(f, 0.1) for f in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_training_brings_the_student_closer_to_the_teacher(tmp_path: Path) -> None:
    trained = distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, quiet)
    assert (trained.steps, trained.tokens) == (12, 4 * 16 * 12)
    assert trained.last_loss < 0.97 * trained.first_loss


def test_the_slices_do_not_change_the_gradient() -> None:
    """One step's gradient equals the one of the plain loss on all tokens."""
    from compression.distill import _step

    student, teacher, batch = tiny(1), tiny(2), torch.tensor(SEQUENCES)
    loss = _step(student, teacher, batch, settings(alpha=0.5))
    sliced = student.model.embed_tokens.weight.grad.clone()
    student.zero_grad()
    logits = student(batch).logits[:, :-1].flatten(0, 1)
    target = teacher(batch).logits[:, :-1].flatten(0, 1)
    plain = distillation_loss(logits, target, batch[:, 1:].flatten(), 0.5, 1.0, 1.0)
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    assert torch.allclose(sliced, student.model.embed_tokens.weight.grad, atol=1e-6)


def test_an_interrupted_training_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill_at_8(_: str, done: int, *__: object) -> None:
        if done == 8:
            raise Killed

    straight = tiny(1)
    distill(straight, tiny(2), SEQUENCES, settings(), 0, tmp_path / "straight", quiet)
    with pytest.raises(Killed):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path / "cut", kill_at_8)
    seen: list[int] = []
    resumed = tiny(1)
    distill(resumed, tiny(2), SEQUENCES, settings(), 0, tmp_path / "cut", lambda _, done, *__: seen.append(done))
    assert seen == [6, 7, 8, 9, 10, 11, 12]
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_loss_that_is_no_number_stops_with_one_line_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    teacher = tiny(2)
    distill(tiny(1), teacher, SEQUENCES, settings(), 0, tmp_path, quiet)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with torch.no_grad():
        teacher.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DistillError, match=r"loss became nan at step 11: lower the learning rate \(0.005\)"):
        distill(tiny(1), teacher, SEQUENCES, settings(), 0, tmp_path, quiet)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_a_time_budget_ends_the_training(tmp_path: Path) -> None:
    trained = distill(tiny(1), tiny(2), SEQUENCES, settings(tokens=None, minutes=0.005), 0, tmp_path, quiet)
    assert 0.3 <= trained.seconds < 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_raises_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "distill.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, quiet)
