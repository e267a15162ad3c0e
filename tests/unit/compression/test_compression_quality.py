"""Quality numbers on the card from the engine's answers, and the single number derived from them. The engine is a fake."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lib.sample_catalog import make_quality
from compression.measure.divergence import TopK
from compression.measure.quality import (
    HeldOut,
    QualityError,
    ReferenceMissing,
    compare_answers,
    derive_quality,
    measure_quality,
)
from serve.card import Quality, TaskScore
from tests.support.fake_served import FakeServed

HELD_OUT = HeldOut([[65, 66, 67], [68, 69, 70]], "six letters", "sha256:" + "a" * 64, "sha256:" + "b" * 64, 0)


def uniform(first: float):
    """An engine with two tokens: the first has probability `first` at every position, and every target is it."""

    def top(sequences, _) -> TopK:
        positions = sum(len(row) - 1 for row in sequences)
        logprobs = np.log([[first, 1 - first]] * positions).astype(np.float32)
        return TopK(np.array([[0, 1]] * positions, np.int32), logprobs, logprobs[:, 0])

    return top


def test_answers_are_equal_up_to_the_first_token_that_differs() -> None:
    reference = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [], [1, 2]]
    found = compare_answers(reference, [[1, 2, 3, 4], [1, 2, 9, 4], [9, 2, 3, 4], [], [1, 2, 3, 4]])
    assert found.equal_tokens == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    assert (found.exact, found.prompts, found.tokens) == (0.4, 5, 4)
    assert found.equal_tokens_ci95[0] <= found.equal_tokens <= found.equal_tokens_ci95[1]
    assert found.exact_ci95[0] < found.exact < found.exact_ci95[1]


def test_full_keeps_its_answers_and_a_variant_is_compared_with_them(tmp_path: Path) -> None:
    progress: list[tuple[str, int, int, str]] = []
    full = FakeServed(lambda prompt: f"{prompt}!!", top=uniform(0.5))
    measured = measure_quality(full, HELD_OUT, tmp_path, True, lambda *facts: progress.append(facts))
    assert (measured.quality, measured.kl_to_full, measured.top1_agreement) == (1, 0, 1)
    assert measured.perplexity == pytest.approx(2)
    assert (measured.answers.equal_tokens, measured.answers.exact) == (1, 1)
    assert (measured.training_digest, measured.shared_ngrams) == (HELD_OUT.training_digest, 0)
    assert [stage for stage, *_ in progress] == ["quality", "answers"]
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"]

    variant = FakeServed(lambda prompt: f"{prompt}!?" if prompt == "ABC" else f"{prompt}!!", top=uniform(0.25))
    other = measure_quality(variant, HELD_OUT, tmp_path, False, lambda *_: None)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert other.kl_to_full == pytest.approx(kl, abs=1e-6)
    assert other.quality == pytest.approx(math.exp(-kl), abs=1e-6)
    assert (other.answers.equal_tokens, other.answers.exact) == ((0.8 + 1) / 2, 0.5)


def test_the_perplexity_with_another_vocabulary_is_of_the_tokens_that_it_was_computed_for(tmp_path: Path) -> None:
    """Of four positions the target of the first covers the second, and the texts differ after that."""
    measure_quality(FakeServed(lambda _: "!", top=uniform(0.5)), HELD_OUT, tmp_path, True, lambda *_: None)
    logprobs = np.log([[0.5, 0.5], *[[np.nan, np.nan]] * 3]).astype(np.float32)
    targets = np.array([math.log(0.25), 0, np.nan, np.nan], np.float32)
    top = TopK(np.array([[0, 1]] * 4, np.int32), logprobs, targets)
    found = measure_quality(FakeServed(lambda _: "!", top=lambda *_: top), HELD_OUT, tmp_path, False, lambda *_: None)
    assert found.perplexity == pytest.approx(2)
    assert (found.tokens, found.kl_to_full) == (1, pytest.approx(0, abs=1e-6))


def test_a_variant_measured_before_full_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ReferenceMissing, match=f"gearbox evaluate {tmp_path} --full {tmp_path}"):
        measure_quality(FakeServed(top=uniform(0.5)), HELD_OUT, tmp_path, False, lambda *_: None)


def test_a_reference_without_stored_answers_is_measured_again(tmp_path: Path) -> None:
    old = tmp_path / f"reference-{'a' * 16}.npz"
    np.savez_compressed(old, ids=np.zeros((4, 2), np.int32), logprobs=np.zeros((4, 2)), targets=np.zeros(4))
    with pytest.raises(ReferenceMissing, match="missing or old"):
        measure_quality(FakeServed(top=uniform(0.5)), HELD_OUT, tmp_path, False, lambda *_: None)


def scored(score: float, digest: str = "sha256:items") -> TaskScore:
    return TaskScore(score=score, ci95=(0, 1), items=100, scoring="exact match", set_digest=digest)


def measured(**scores: TaskScore) -> Quality:
    answers = compare_answers([[1, 2]], [[1, 3]])
    return make_quality(0.9).model_copy(update={"answers": answers, "task_scores": scores})


def test_quality_is_derived_from_what_the_operator_names() -> None:
    quality = measured(sums=scored(0.3))
    by_kl = derive_quality(quality, "kl", {})
    assert (by_kl.quality, by_kl.quality_from) == (pytest.approx(math.exp(-0.1)), "kl")
    by_answers = derive_quality(quality, "agreement", {})
    assert (by_answers.quality, by_answers.quality_from) == (0.5, "agreement")
    by_task = derive_quality(quality, "task:sums", {"sums": scored(0.4)})
    assert (by_task.quality, by_task.quality_from) == (pytest.approx(0.75), "task:sums")
    assert len({by_kl.derivation, by_answers.derivation, by_task.derivation}) == 3
    assert "'sums'" in by_task.derivation and "0.400" in by_task.derivation


def test_full_is_one_and_nothing_is_above_it() -> None:
    assert derive_quality(measured(sums=scored(0.4)), "task:sums", {"sums": scored(0.4)}).quality == 1
    assert derive_quality(measured(sums=scored(0.6)), "task:sums", {"sums": scored(0.4)}).quality == 1


@pytest.mark.parametrize(
    ("name", "full", "message"),
    [
        ("other", {}, "the tasks are sums"),
        ("sums", {}, "not evaluated on the same items"),
        ("sums", {"sums": scored(0.4, "sha256:others")}, "not evaluated on the same items"),
        ("sums", {"sums": scored(0.0)}, "gets no item right"),
    ],
)
def test_a_number_that_cannot_be_derived_says_what_is_missing(name: str, full: dict, message: str) -> None:
    with pytest.raises(QualityError, match=message):
        derive_quality(measured(sums=scored(0.3)), f"task:{name}", full)
