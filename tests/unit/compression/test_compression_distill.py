"""Distillation of tiny random models: it learns, resumes exactly, and fails with one clear line."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.distill import trainer  # noqa: E402
from compression.distill.losses import distillation_loss, hidden_loss  # noqa: E402
from compression.distill.teacher import CacheError, Teacher, TopKCache  # noqa: E402
from compression.distill.trainer import DistillError, distill, learning_rate_factor  # noqa: E402
from compression.recipe.schema import Distill  # noqa: E402


def quiet(*_: object) -> None:
    pass


def tiny(seed: int, layers: int = 2, width: int = 32, **changes: object) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **changes,
    )
    return transformers.LlamaForCausalLM(config)


def settings(**changes: object) -> Distill:
    budget = {"tokens": 4 * 16 * 12, "batch": 4, "sequence_length": 16, "learning_rate": 5e-3, "warmup": 0.1}
    return Distill.model_validate({"technique": "distill", **budget, "checkpoint_every": 5, **changes})


SEQUENCES = torch.randint(64, (32, 16), generator=torch.Generator().manual_seed(0)).tolist()


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    assert [learning_rate_factor(f, 0.1) for f in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_training_brings_the_student_closer_to_the_teacher(tmp_path: Path) -> None:
    trained = distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, quiet)
    assert (trained.steps, trained.tokens) == (12, 4 * 16 * 12)
    assert trained.last_loss < 0.97 * trained.first_loss


def gradient(student: "transformers.LlamaForCausalLM", teacher: "transformers.LlamaForCausalLM", **changes: object):
    """The trainer's own loss on all sequences, and the gradient of the embeddings."""
    given = settings(**changes)
    layers = trainer._layer_mapping(student, teacher, given)
    learner = trainer._StudentTrainer(
        student, Teacher(teacher, given, set(layers.values()), None), given, layers, seed=0
    )
    batch = torch.tensor(SEQUENCES)
    return learner.backward(batch, len(batch)), learner.masters[0].grad


@pytest.mark.parametrize("micro_batch", [None, 4, 3])
def test_neither_slices_nor_micro_batches_change_the_gradient(micro_batch: int | None) -> None:
    """It equals the one of the plain loss on all tokens, hidden states included."""
    student, teacher, batch = tiny(1), tiny(2, layers=4), torch.tensor(SEQUENCES)
    options = {"alpha": 0.5, "beta": 0.7, "tau": 2.0, "divergence": "js", "hidden": 0.3, "hidden_layers": {0: 1, 1: 3}}
    loss, found = gradient(student, teacher, **options, micro_batch=micro_batch)
    student_output = student(batch, output_hidden_states=True)
    teacher_output = teacher(batch, output_hidden_states=True)
    logits, target = (answer.logits[:, :-1].flatten(0, 1) for answer in (student_output, teacher_output))
    plain = distillation_loss(logits, target, batch[:, 1:].flatten(), 0.5, 0.7, 2.0, True, "js")
    pairs = (
        (student_output.hidden_states[1], teacher_output.hidden_states[2]),
        (student_output.hidden_states[2], teacher_output.hidden_states[4]),
    )
    plain = plain + 0.3 * torch.stack([hidden_loss(h, t) for h, t in pairs]).mean()
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    assert torch.allclose(found, student.model.embed_tokens.weight.grad, atol=1e-6)


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    trained = []
    for name, changes in (("plain", {}), ("checkpointing", {"gradient_checkpointing": True})):
        student = tiny(1)
        distill(student, tiny(2), SEQUENCES, settings(hidden=0.1, **changes), 0, tmp_path / name, quiet)
        trained.append(student)
    assert trained[1].is_gradient_checkpointing is False
    assert same_weights(*trained)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 1.0, "beta": 0.0},
        {"tau": 2.0, "scale_by_tau": False},
        {"divergence": "reverse"},
        {"divergence": "js", "js_weight": 0.2},
        {"beta": 0.0, "hidden": 1.0},
    ],
)
def test_every_loss_is_learnt(tmp_path: Path, changes: dict[str, object]) -> None:
    """On one batch that comes again and again, so that the loss of hard labels on random tokens falls too."""
    trained = distill(tiny(1), tiny(2), SEQUENCES[:4], settings(**changes), 0, tmp_path, quiet)
    assert trained.last_loss < 0.985 * trained.first_loss  # H of softened distributions has a high floor


def test_a_narrower_student_learns_the_teachers_states_through_a_projection(tmp_path: Path) -> None:
    student = tiny(1, width=16)
    trained = distill(student, tiny(2), SEQUENCES[:4], settings(beta=0.0, hidden=1.0), 0, tmp_path, quiet)
    assert trained.last_loss < 0.97 * trained.first_loss
    assert [name for name in student.state_dict() if "projection" in name] == []


@pytest.mark.parametrize(
    ("layers", "message"),
    [({2: 0}, "layer 2: the student has layers 0 to 1"), ({0: 4}, "layer 4: the teacher has layers 0 to 3")],
)
def test_a_layer_there_is_not_is_refused(tmp_path: Path, layers: dict[int, int], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        distill(
            tiny(1),
            tiny(2, layers=4),
            SEQUENCES,
            settings(hidden=1.0, hidden_layers=layers),
            0,
            tmp_path,
            quiet,
        )


def test_the_cached_teacher_gives_the_same_weights_and_runs_once(tmp_path: Path) -> None:
    """With k = the whole vocabulary they are also those without a cache."""
    cache = TopKCache(tmp_path / "cache", "teacher 2")
    students = [tiny(1), tiny(1), tiny(1)]
    forward_passes = []
    for student, changes in zip(students, ({}, {"teacher_top_k": 64}, {"teacher_top_k": 64}), strict=True):
        teacher = tiny(2)
        teacher.model.register_forward_hook(lambda _, args, kwargs: forward_passes.append(1))
        before = len(forward_passes)
        folder = tmp_path / str(students.index(student))
        distill(student, teacher, SEQUENCES, settings(tau=2.0, **changes), 0, folder, quiet, cache)
        forward_passes.append(0)
        last = sum(forward_passes[before:])
    assert last == 0
    assert same_weights(students[1], students[2])
    for one, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_cache_tells_teachers_temperatures_sizes_and_texts_apart(tmp_path: Path) -> None:
    one, other = TopKCache(tmp_path, "one"), TopKCache(tmp_path, "other")
    arguments = [
        (one, [1, 2], 8, 1.0, torch.float32),
        (other, [1, 2], 8, 1.0, torch.float32),
        (one, [12], 8, 1.0, torch.float32),
        (one, [1, 2], 9, 1.0, torch.float32),
        (one, [1, 2], 8, 2.0, torch.float32),
        (one, [1, 2], 8, 1.0, torch.bfloat16),
    ]
    assert len({cache.file(*rest) for cache, *rest in arguments}) == len(arguments)


def test_a_damaged_cache_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    cache, given = TopKCache(tmp_path / "cache", "teacher 2"), settings(teacher_top_k=8)
    distill(tiny(1), tiny(2), SEQUENCES, given, 0, tmp_path / "one", quiet, cache)
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CacheError, match=r"cache/../[0-9a-f]{64}.npz is damaged: remove that file"):
        distill(tiny(1), tiny(2), SEQUENCES, given, 0, tmp_path / "two", quiet, cache)


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at_8(_: str, done: int, *__: object) -> None:
    if done == 8:
        raise Killed


def same_weights(one: "torch.nn.Module", other: "torch.nn.Module") -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 3, "hidden": 0.5, "divergence": "js"}, {"teacher_top_k": 8, "tau": 2.0}]
)
def test_an_interrupted_training_gives_the_weights_it_would_have_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, changes: dict[str, object]
) -> None:
    """To the bit: optimizer, projections, order of the text, learning rate and dropout go on where they were."""
    monkeypatch.setattr(trainer, "compute_dtype", lambda: dtype)
    cache = TopKCache(tmp_path / "cache", "teacher 2")

    def train(folder: str, report: object) -> "transformers.LlamaForCausalLM":
        student = tiny(1, width=16, attention_dropout=0.3)
        distill(student, tiny(2), SEQUENCES, settings(**changes), 0, tmp_path / folder, report, cache)
        return student

    straight = train("straight", quiet)
    with pytest.raises(Killed):
        train("cut", kill_at_8)
    seen: list[int] = []
    torch.manual_seed(99)
    resumed = train("cut", lambda _, done, *__: seen.append(done))
    assert seen == [6, 7, 8, 9, 10, 11, 12]
    assert same_weights(straight, resumed)


def test_another_training_does_not_take_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, kill_at_8)
    for changes, sequences, seed in (({"tau": 2.0}, SEQUENCES, 0), ({}, SEQUENCES[1:], 0), ({}, SEQUENCES, 1)):
        seen: list[int] = []
        report = lambda _, done, *__, seen=seen: seen.append(done)  # noqa: E731
        distill(tiny(1), tiny(2), sequences, settings(**changes), seed, tmp_path, report)
        assert seen[0] == 1


def test_a_damaged_checkpoint_is_one_line_and_stays(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, kill_at_8)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DistillError, match=rf"{file.name} is damaged: remove it to train from the start"):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, quiet)
    assert file.stat().st_size == 1000


def test_a_loss_that_is_no_number_stops_with_one_line_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    teacher = tiny(2)
    with pytest.raises(Killed):
        distill(tiny(1), teacher, SEQUENCES, settings(), 0, tmp_path, kill_at_8)
    (file,) = tmp_path.glob("*.pt")
    before = file.read_bytes()
    with torch.no_grad():
        teacher.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DistillError, match=r"loss became nan at step 6: lower the learning rate \(0.005\)"):
        distill(tiny(1), teacher, SEQUENCES, settings(), 0, tmp_path, quiet)
    assert file.read_bytes() == before


def test_a_gradient_that_is_no_number_spoils_neither_weights_nor_checkpoint(tmp_path: Path) -> None:
    """A finite loss can have one; clipped and applied, it would make every weight NaN before the next loss shows it."""
    student = tiny(1)
    before = [weight.detach().clone() for weight in student.parameters()]
    student.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DistillError, match="the gradient became nan at step 1"):
        distill(student, tiny(2), SEQUENCES, settings(checkpoint_every=1), 0, tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []
    after = list(student.parameters())  # in bfloat16 where the processor computes with it
    assert all(torch.equal(one.to(other.dtype), other) for one, other in zip(before, after, strict=True))


def test_a_time_budget_ends_the_training(tmp_path: Path) -> None:
    trained = distill(tiny(1), tiny(2), SEQUENCES, settings(tokens=None, minutes=0.005), 0, tmp_path, quiet)
    assert 0.3 <= trained.seconds < 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_raises_an_os_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, kill_at_8)
    (file,) = tmp_path.glob("*.pt")
    before = file.read_bytes()
    file.with_suffix(".tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        distill(tiny(1), tiny(2), SEQUENCES, settings(), 0, tmp_path, quiet)
    assert file.read_bytes() == before
