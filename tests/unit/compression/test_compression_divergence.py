"""The coarse-grained KL is a lower bound of the exact one, and exact when nothing is left out."""

import numpy as np
import pytest

from compression.measure.divergence import TopK, coarse_kl, merge_tokens, top1_agreement


def distributions(seed: int, positions: int = 50, vocabulary: int = 200) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3, size=(positions, vocabulary))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def top(logprobs: np.ndarray, k: int) -> TopK:
    ids = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    return TopK(ids, np.take_along_axis(logprobs, ids, axis=1).astype(np.float32), logprobs[:, 0].astype(np.float32))


def exact_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(axis=1)


def test_it_is_exact_with_the_whole_vocabulary() -> None:
    p, q = distributions(1), distributions(2)
    assert coarse_kl(top(p, 200), top(q, 200)) == pytest.approx(exact_kl(p, q), rel=1e-4)


@pytest.mark.parametrize(("k", "other_k"), [(1, 1), (5, 5), (8, 64), (64, 8), (64, 200)])
def test_it_never_exceeds_the_exact_value(k: int, other_k: int) -> None:
    p, q = distributions(3), distributions(4)
    assert (coarse_kl(top(p, k), top(q, other_k)) <= exact_kl(p, q) + 1e-5).all()


def test_more_tokens_make_it_tighter() -> None:
    p = distributions(5)
    q = p + np.random.default_rng(6).normal(scale=0.3, size=p.shape)
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    means = [coarse_kl(top(p, k), top(q, 4 * k)).mean() for k in (2, 8, 32)]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(exact_kl(p, q).mean(), rel=0.1)


def test_by_hand() -> None:
    """p = (.5, .25, .25), q = (.25, .5, .25), one token of each stored: buckets {0}, {1}, rest share nothing but the rest."""
    p = TopK(np.array([[0, 1]], dtype=np.int32), np.log([[0.5, 0.25]]).astype(np.float32), np.zeros(1, np.float32))
    q = TopK(np.array([[1, 0]], dtype=np.int32), np.log([[0.5, 0.25]]).astype(np.float32), np.zeros(1, np.float32))
    assert coarse_kl(p, q) == pytest.approx([0.25 * np.log(2)], abs=1e-6)
    assert top1_agreement(p, q) == 0.0


def test_a_distribution_does_not_differ_from_itself() -> None:
    p = top(distributions(7), 16)
    assert coarse_kl(p, p) == pytest.approx(np.zeros(50), abs=1e-6)
    assert top1_agreement(p, p) == 1.0


def test_merged_tokens_have_the_sum_of_their_probabilities() -> None:
    logprobs = np.log([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]]).astype(np.float32)
    given = TopK(np.array([[0, 1, 2, 9], [2, 1, 0, 3]], np.int32), logprobs, np.zeros(2, np.float32))
    merged = merge_tokens(given, np.array([0, 1, 1, 3], np.int32))
    assert merged.ids.tolist() == [[1, 0, -2, -2], [1, 0, 3, -2]]
    assert np.exp(merged.logprobs[:, :2]) == pytest.approx(np.array([[0.5, 0.4], [0.7, 0.2]]))
