"""Quality of a variant relative to `full`, from the log-probabilities that the serving engine gives on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compression.divergence import TopK, bootstrap_ci95, coarse_kl, top1_agreement
from compression.progress import Report
from serve.card import Quality

if TYPE_CHECKING:
    from vllm import LLM

REFERENCE_TOP = 64  # tokens of full's distribution that are kept at each position
VARIANT_TOP = 512  # of the variant's: enough that almost all of full's are among them
DERIVATION = (
    "exp(-mean KL(full||variant) per token): the geometric-mean share of full's probability that the variant keeps; "
    f"KL from full's top {REFERENCE_TOP} and the variant's top {VARIANT_TOP} tokens, the rest as one bucket (a lower bound)"
)


class ReferenceMissing(Exception):
    """`full` has not been measured on this text yet."""


def measure_quality(
    llm: "LLM",
    sequences: Sequence[Sequence[int]],
    set_name: str,
    set_digest: str,
    full: Path,
    is_full: bool,
    report: Report,
) -> Quality:
    """Compare the variant that `llm` serves with `full` on `sequences` of token ids, all of one length.

    `full` measures its own log-probabilities once and keeps them beside its weights; it is its own reference.

    Raises:
        ReferenceMissing: a variant is measured before `full` was, on the same text.
    """
    file = full / f"reference-{set_digest.removeprefix('sha256:')[:16]}.npz"
    if is_full:
        measured = top_logprobs(llm, sequences, REFERENCE_TOP, report)
        _save(file, measured)
        reference = measured
    else:
        reference = _load(file)
        measured = top_logprobs(llm, sequences, VARIANT_TOP, report)
    kl = coarse_kl(reference, measured)
    per_sequence = kl.reshape(len(sequences), -1).mean(axis=1)
    mean = float(kl.mean())
    return Quality(
        quality=float(np.exp(-mean)),
        derivation=DERIVATION,
        perplexity=float(np.exp(-measured.targets.astype(np.float64).mean())),
        kl_to_full=mean,
        kl_ci95=bootstrap_ci95(per_sequence),
        top1_agreement=top1_agreement(reference, measured),
        tokens=len(kl),
        set=set_name,
        set_digest=set_digest,
    )


def top_logprobs(llm: "LLM", sequences: Sequence[Sequence[int]], top: int, report: Report) -> TopK:
    """The `top` most likely next tokens at every position of every sequence but its last, concatenated.

    Asking for prompt log-probabilities makes vLLM skip its prefix cache, so every position is computed.
    """
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=top, detokenize=False, flat_logprobs=True)
    ids, logprobs = [], []
    for start in range(0, len(sequences), 4):  # a few at a time: the answers are Python lists of millions of numbers
        rows = sequences[start : start + 4]
        answers = llm.generate([TokensPrompt(prompt_token_ids=list(row)) for row in rows], params, use_tqdm=False)
        for answer in answers:
            flat = answer.prompt_logprobs
            ids.append(np.array(flat.token_ids, dtype=np.int32).reshape(-1, top + 1))  # the next token comes first
            logprobs.append(np.array(flat.logprobs, dtype=np.float32).reshape(-1, top + 1))
        report("quality", start + len(rows), len(sequences), "sequences")
    everything = np.concatenate(logprobs)
    return TopK(np.concatenate(ids)[:, 1:], everything[:, 1:], everything[:, 0])


def _save(file: Path, reference: TopK) -> None:
    scratch = file.with_suffix(".tmp")
    with scratch.open("wb") as stream:
        np.savez_compressed(stream, ids=reference.ids, logprobs=reference.logprobs, targets=reference.targets)
    scratch.replace(file)


def _load(file: Path) -> TopK:
    try:
        with np.load(file) as content:
            return TopK(content["ids"], content["logprobs"], content["targets"])
    except FileNotFoundError as error:
        raise ReferenceMissing(f"'full' was not measured on this text ({file} is missing): measure it first") from error
