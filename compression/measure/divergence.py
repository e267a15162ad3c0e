"""KL divergence and top-1 agreement of next-token distributions, from their top log-probabilities. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]

NO_TOKEN = -2  # in place of an id; equal to none of a model's tokens


@dataclass(frozen=True, slots=True)
class TopK:
    """The most likely tokens at each position, most likely first.

    `ids` and `logprobs` are (positions, K); `targets` (positions,) is the log-probability of the token that followed.
    """

    ids: Ids
    logprobs: Floats
    targets: Floats


def merge_tokens(top: TopK, new_ids: Ids) -> TopK:
    """`top` with `new_ids[id]` in place of each id; the probabilities of tokens that get the same one are added.

    Of the same shape, most likely first; the places that are left over have the id -2 and the log-probability nan. Ids
    beyond `new_ids`, of padded vocabularies, become -2.
    """
    ids = np.concatenate((new_ids, np.array([NO_TOKEN], new_ids.dtype)))[np.minimum(top.ids, len(new_ids))]
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    p = np.exp(np.take_along_axis(top.logprobs, order, axis=1).astype(np.float64))
    is_first = np.ones(ids.shape, dtype=bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    sums = np.full(ids.shape, np.nan)
    sums[is_first] = np.add.reduceat(p.ravel(), np.flatnonzero(is_first))
    ids = np.where(is_first, ids, NO_TOKEN).astype(np.int32)
    order = np.argsort(-sums, axis=1, kind="stable")  # nan comes last
    logprobs = np.log(np.take_along_axis(sums, order, axis=1)).astype(np.float32)
    return TopK(np.take_along_axis(ids, order, axis=1), logprobs, top.targets)


def coarse_kl(reference: TopK, other: TopK) -> NDArray[np.float64]:
    """KL(reference || other) at each position, nats, over a coarsened vocabulary; shape (positions,).

    Tokens in both lists keep their own bucket, all others share one. By the data-processing inequality (Cover & Thomas,
    Elements of Information Theory, section 2.8) that is a lower bound of the KL over the whole vocabulary, and equal to
    it when both lists are the whole vocabulary.
    """
    positions = np.arange(len(reference.ids), dtype=np.int64)[:, None] << 32
    other_keys = (positions | other.ids).ravel()
    order = np.argsort(other_keys, kind="stable")
    reference_keys = (positions | reference.ids).ravel()
    match = order[np.minimum(np.searchsorted(other_keys, reference_keys, sorter=order), len(other_keys) - 1)]
    shared = (other_keys[match] == reference_keys).reshape(reference.ids.shape)

    log_p = reference.logprobs.astype(np.float64)
    log_q = other.logprobs.astype(np.float64).ravel()[match].reshape(shared.shape)
    p, q = np.where(shared, np.exp(log_p), 0.0), np.where(shared, np.exp(log_q), 0.0)
    kl = np.where(shared, p * (log_p - log_q), 0.0).sum(axis=1)

    rest_p = np.clip(1 - p.sum(axis=1), 0.0, 1.0)
    rest_q = np.clip(1 - q.sum(axis=1), 1e-9, 1.0)  # float32 sums reach 1 when nothing is left
    with np.errstate(divide="ignore", invalid="ignore"):
        kl += np.where(rest_p > 1e-9, rest_p * np.log(rest_p / rest_q), 0.0)
    bounded: NDArray[np.float64] = np.maximum(kl, 0.0)
    return bounded


def top1_agreement(reference: TopK, other: TopK) -> float:
    """Share of positions whose most likely token is the same."""
    return float((reference.ids[:, 0] == other.ids[:, 0]).mean())
