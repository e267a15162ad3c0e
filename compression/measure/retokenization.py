"""A variant with a pruned vocabulary seen through full's tokens, so that it can be compared with full token by token.

The same text is other tokens to it. Where both have a token that ends at the same character, the next token's distributions are
comparable, since each of the variant's tokens is one of full's by its string. A token of full's that the variant spells in
pieces has the probability of its pieces. Positions at which only full's tokens end are nan.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from compression.measure.divergence import TopK
from compression.measure.engine import Done, Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = Sequence[int]


class Retokenized(Served):
    """`served` in the token ids of `tokenizer`, which is full's."""

    def __init__(self, served: Served, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__(served.llm, tokenizer)
        self._own = served
        names, own = tokenizer.get_vocab(), served.tokenizer.get_vocab()
        self._full_id = np.full(max(own.values()) + 1, -1, dtype=np.int32)
        for name, at in own.items():
            self._full_id[at] = names.get(name, -1)

    def own(self, sequences: Sequence[Tokens]) -> list[list[int]]:
        """The variant's token ids for the text of full's."""
        return [self._own.encode(self.decode(sequence)) for sequence in sequences]

    def top_logprobs(self, sequences: Sequence[Tokens], top: int, done: Done) -> TopK:
        """As `Served.top_logprobs`, a row for every position of full's."""
        theirs = self.own(sequences)
        found = self._own.top_logprobs(theirs, top, done)
        rows = sum(len(sequence) - 1 for sequence in sequences)
        ids, logprobs = np.full((rows, top), -1, np.int32), np.full((rows, top), np.nan, np.float32)
        targets = np.full(rows, np.nan, np.float32)
        row = own_row = 0  # of the first position of the sequence
        for sequence, own in zip(sequences, theirs, strict=True):
            common = common_ends(
                self.tokenizer.convert_ids_to_tokens(sequence), self._own.tokenizer.convert_ids_to_tokens(own)
            )
            for (at, own_at), (_, own_next) in pairwise(common):
                ids[row + at] = self._full_id[found.ids[own_row + own_at]]
                logprobs[row + at] = found.logprobs[own_row + own_at]
                targets[row + at] = found.targets[own_row + own_at : own_row + own_next].sum()
            row += len(sequence) - 1
            own_row += len(own) - 1
        return TopK(ids, logprobs, targets)

    def greedy(
        self, prompts: Sequence[Tokens], tokens: int, done: Done, stop: Sequence[str] = ()
    ) -> list[tuple[list[int], str]]:
        """As `Served.greedy`; the answers' text in full's token ids."""
        answers = self._own.greedy(self.own(prompts), tokens, done, stop)
        return [(self.encode(text), text) for _, text in answers]


def common_ends(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Where tokens of both end at the same character, as indices into both; up to where the texts differ."""
    texts = "".join(one), "".join(other)
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    ends = {end: at for at, end in enumerate(accumulate(map(len, other))) if end <= same}
    return [(at, ends[end]) for at, end in enumerate(accumulate(map(len, one))) if end in ends]
