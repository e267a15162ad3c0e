"""Retokenization: compare a variant with a pruned vocabulary with full, token by token.

The variant splits the same text into other tokens. Where both have a token that ends at the same character, the next token's distributions are
comparable, since each of the variant's tokens is one of full's by its string. A token of full's that the variant spells in
pieces has the probability of its pieces, and in full's distributions it counts as the first of them. Positions at which only
full's tokens end are nan; their targets are 0 where the target before covers them.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from compression.measure.divergence import NO_TOKEN, Ids, TopK, merge_tokens
from compression.measure.engine import OnDone, ServedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = Sequence[int]


class Retokenized(ServedModel):
    """`served` in the token ids of `tokenizer`, which is full's."""

    def __init__(self, served: ServedModel, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__(served.llm, tokenizer)
        self._model = served
        names, model_tokens = tokenizer.get_vocab(), served.tokenizer.get_vocab()
        self._first_pieces = first_pieces(names, served.tokenizer)
        self._full_id = np.full(max(model_tokens.values()) + 1, -1, dtype=np.int32)
        for name, at in model_tokens.items():
            self._full_id[at] = names.get(name, -1)

    def to_model_tokens(self, sequences: Sequence[Tokens]) -> list[list[int]]:
        """The variant's token ids for the text of full's."""
        return [self._model.encode(self.decode(sequence)) for sequence in sequences]

    def merge_to_model_tokens(self, top_k: TopK) -> TopK:
        """`top_k` with the tokens that the variant lacks as the first piece that it spells them with."""
        return merge_tokens(top_k, self._first_pieces)

    def top_logprobs(self, sequences: Sequence[Tokens], top: int, done: OnDone) -> TopK:
        """As `ServedModel.top_logprobs`, a row for every position of full's."""
        model_sequences = self.to_model_tokens(sequences)
        top_k = self._model.top_logprobs(model_sequences, top, done)
        rows = sum(len(sequence) - 1 for sequence in sequences)
        ids, logprobs = np.full((rows, top), -1, np.int32), np.full((rows, top), np.nan, np.float32)
        targets = np.full(rows, np.nan, np.float32)
        row = model_row = 0  # of the first position of the sequence
        for sequence, model_tokens in zip(sequences, model_sequences, strict=True):
            common = common_token_ends(
                self.tokenizer.convert_ids_to_tokens(sequence),
                self._model.tokenizer.convert_ids_to_tokens(model_tokens),
            )
            for (at, model_at), (next_at, model_next) in pairwise(common):
                ids[row + at] = self._full_id[top_k.ids[model_row + model_at]]
                logprobs[row + at] = top_k.logprobs[model_row + model_at]
                targets[row + at] = top_k.targets[model_row + model_at : model_row + model_next].sum()
                targets[row + at + 1 : row + next_at] = 0
            row += len(sequence) - 1
            model_row += len(model_tokens) - 1
        return TopK(ids, logprobs, targets)

    def generate_greedy(
        self, prompts: Sequence[Tokens], tokens: int, done: OnDone, stop: Sequence[str] = ()
    ) -> list[tuple[list[int], str]]:
        """As `ServedModel.generate_greedy`, in full's token ids.

        The variant writes twice as many of its own tokens, as it may need more of them for the same text.
        """
        answers = []
        for model_tokens, text in self._model.generate_greedy(self.to_model_tokens(prompts), 2 * tokens, done, stop):
            ids = self.encode(self._model.decode(model_tokens))[:tokens]  # of the tokens: the text lacks the end token
            answers.append((ids, text[: len(self.decode(ids))]))
        return answers


def first_pieces(names: Mapping[str, int], tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """For each of full's token ids, full's id of the first token that the variant's `tokenizer` has in its place.

    Args:
        names: full's vocabulary, ids by name.
    """
    ids = np.full(max(names.values()) + 1, NO_TOKEN, dtype=np.int32)
    model_names = {at: name for name, at in tokenizer.get_vocab().items()}
    kept = set(model_names.values())
    for name, at in names.items():
        # of the name, not of its text: a token may be a part of a character, and its text may lack the space before it
        pieces = [] if name in kept else tokenizer.backend_tokenizer.model.tokenize(name)
        piece = model_names[pieces[0].id] if pieces else name
        ids[at] = names.get(piece, NO_TOKEN)
    return ids


def common_token_ends(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Where tokens of both end at the same character, as indices into both; up to where the texts differ."""
    texts = "".join(first), "".join(second)
    common_length = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    ends = {end: at for at, end in enumerate(accumulate(map(len, second))) if end <= common_length}
    return [(at, ends[end]) for at, end in enumerate(accumulate(map(len, first))) if end in ends]
