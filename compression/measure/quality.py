"""Quality of a variant relative to `full`: log-probabilities and answers of the serving engine, and the one number of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compression.errors import UserError
from compression.measure.divergence import TopK, coarse_kl, top1_agreement
from compression.measure.engine import ServedModel
from compression.measure.intervals import bootstrap_ci95, wilson_ci95
from compression.progress import Report
from serve.card import AnswerAgreement, Quality, TaskScore

REFERENCE_TOP = 64  # tokens of full's distribution that are stored for each position
VARIANT_TOP = 512  # of the variant's: enough that almost all of full's are among them
PROMPT_TOKENS, ANSWER_TOKENS = 96, 32  # greedy answers go on from the start of each held-out sequence
DERIVATION_KL = (
    "exp(-mean KL(full||variant) per token): the geometric-mean share of full's probability that the variant keeps; "
    f"KL from full's top {REFERENCE_TOP} and the variant's top {VARIANT_TOP} tokens, the rest as one bucket (a lower bound)"
)
DERIVATION_AGREEMENT = (
    "mean share of the tokens of a greedy answer that are full's, up to the first that differs "
    f"(answers of up to {ANSWER_TOKENS} tokens to held-out prompts)"
)


class QualityError(UserError):
    """The requested quality number cannot be derived; the message names what is missing."""


class ReferenceMissing(QualityError):
    """`full` has not been measured on this text yet."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out evaluation text: token ids of one length, and its description for the card."""

    sequences: Sequence[Sequence[int]]
    name: str
    digest: str
    training_digest: str
    shared_ngrams: int


@dataclass(frozen=True, slots=True)
class FullReference:
    """Output of `full` on the held-out text: its top tokens, and its greedy answers as token ids."""

    top: TopK
    answers: Sequence[Sequence[int]]


def measure_quality(served: ServedModel, held_out: HeldOut, full: Path, is_full: bool, report: Report) -> Quality:
    """Compare `served` with `full` on held-out text; its `quality` is the default, from the KL divergence.

    `full` measures its own answers once and keeps them beside its weights; it is its own reference.

    Raises:
        ReferenceMissing: a variant is measured before `full` was, on the same text.
    """
    file = full / f"reference-{held_out.digest.removeprefix('sha256:')[:16]}.npz"
    count = len(held_out.sequences)
    reference = None if is_full else _load(file)
    top = REFERENCE_TOP if is_full else VARIANT_TOP
    measured = served.top_logprobs(held_out.sequences, top, lambda done: report("quality", done, count, "sequences"))
    prompts = [sequence[:PROMPT_TOKENS] for sequence in held_out.sequences]
    answers = served.generate_greedy(prompts, ANSWER_TOKENS, lambda done: report("answers", done, count, "answers"))
    ids = [tokens for tokens, _ in answers]
    if reference is None:
        reference = FullReference(measured, ids)
        _save(file, reference)
    # all of them, but for a variant with another vocabulary
    comparable, scored = ~np.isnan(measured.logprobs[:, 0]), ~np.isnan(measured.targets)
    if not comparable.any():
        raise QualityError("this variant and 'full' tokenize none of the held-out text alike")
    comparable_top = [
        TopK(top.ids[comparable], top.logprobs[comparable], top.targets[comparable])
        for top in (served.merge_to_model_tokens(reference.top), measured)
    ]
    kl = np.full(len(comparable), np.nan)
    kl[comparable] = coarse_kl(*comparable_top)
    by_sequence = [row[~np.isnan(row)].mean() for row in kl.reshape(count, -1) if not np.isnan(row).all()]
    mean = float(kl[comparable].mean())
    return Quality(
        quality=float(np.exp(-mean)),
        derivation=DERIVATION_KL,
        perplexity=float(np.exp(-measured.targets[scored].mean(dtype=np.float64))),
        kl_to_full=mean,
        kl_ci95=bootstrap_ci95(np.array(by_sequence)),
        top1_agreement=top1_agreement(*comparable_top),
        answers=compare_answers(reference.answers, ids),
        tokens=int(comparable.sum()),
        set=held_out.name,
        set_digest=held_out.digest,
        training_digest=held_out.training_digest,
        shared_ngrams=held_out.shared_ngrams,
    )


def compare_answers(reference: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> AnswerAgreement:
    """How much of each answer equals the reference's answer to the same prompt, as token ids.

    The share of an answer is its tokens before the first that differs, of the longer one's tokens: after that token both
    go on from different texts. Two empty answers are equal.
    """
    shares = []
    for expected, actual in zip(reference, answers, strict=True):
        max_tokens = max(len(expected), len(actual))
        pairs = enumerate(zip(expected, actual, strict=False))
        equal = next((at for at, (first, second) in pairs if first != second), min(len(expected), len(actual)))
        shares.append(equal / max_tokens if max_tokens else 1.0)
    exact = sum(share == 1.0 for share in shares)
    return AnswerAgreement(
        equal_tokens=float(np.mean(shares)),
        equal_tokens_ci95=bootstrap_ci95(np.array(shares)),
        exact=exact / len(shares),
        exact_ci95=wilson_ci95(exact, len(shares)),
        prompts=len(shares),
        tokens=max(1, *map(len, reference), *map(len, answers)),
    )


def derive_quality(measured: Quality, quality_from: str, full_scores: Mapping[str, TaskScore]) -> Quality:
    """`measured` with its one number from `kl`, `agreement` (of answers) or `task:NAME`, and how it was derived.

    A task's number is the variant's score by full's score, at most 1, so that `full` is 1 whatever the task is.

    Args:
        full_scores: the task scores on full's card; of `full` itself, its own new ones.

    Raises:
        QualityError: no such task, full has no score on the same items, or full answers none of them.
    """
    if quality_from == "kl":
        number, derivation = float(np.exp(-measured.kl_to_full)), DERIVATION_KL
    elif quality_from == "agreement":
        if measured.answers is None:
            raise QualityError("no quality from agreement: no answers were compared")
        number, derivation = measured.answers.equal_tokens, DERIVATION_AGREEMENT
    else:
        name = quality_from.removeprefix("task:")
        own, full = measured.task_scores.get(name), full_scores.get(name)
        if own is None:
            raise QualityError(f"no quality from {quality_from}: the tasks are {', '.join(measured.task_scores)}")
        if full is None or full.set_digest != own.set_digest:
            raise ReferenceMissing(
                f"no quality from {quality_from}: 'full' was not evaluated on the same items; do it first"
            )
        if full.score == 0:
            raise QualityError(
                f"no quality from {quality_from}: 'full' gets no item right, so nothing can be relative to it"
            )
        number = min(1.0, own.score / full.score)
        derivation = (
            f"score on the task '{name}' ({own.items} items: {own.scoring}) by full's {full.score:.3f}, at most 1"
        )
    return measured.model_copy(update={"quality": number, "derivation": derivation, "quality_from": quality_from})


def _save(file: Path, reference: FullReference) -> None:
    max_tokens = max(map(len, reference.answers))
    answers = np.array([[*row, *[-1] * (max_tokens - len(row))] for row in reference.answers], dtype=np.int32)
    scratch = file.with_suffix(".tmp")
    with scratch.open("wb") as stream:
        top = reference.top
        np.savez_compressed(stream, ids=top.ids, logprobs=top.logprobs, targets=top.targets, answers=answers)
    scratch.replace(file)


def _load(file: Path) -> FullReference:
    try:
        with np.load(file) as content:
            answers = [row[row >= 0].tolist() for row in content["answers"]]
            return FullReference(TopK(content["ids"], content["logprobs"], content["targets"]), answers)
    except (FileNotFoundError, KeyError) as error:  # KeyError: written before answers were stored
        raise ReferenceMissing(
            f"'full' was not measured on this text ({file} is missing or old): measure it first, "
            f"with 'gearbox evaluate {file.parent} --full {file.parent}'"
        ) from error
