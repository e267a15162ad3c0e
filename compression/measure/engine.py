"""The serving engine for measurements: log-probabilities of given tokens, and greedy answers."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compression.measure.divergence import TopK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

OnDone = Callable[[int], None]  # called with the number of finished rows


class ServedModel:
    """One variant in vLLM's synchronous engine, with the arguments of serving."""

    def __init__(self, llm: "LLM", tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
        self.llm = llm
        self.tokenizer = tokenizer or llm.get_tokenizer()
        self.max_model_len: int = llm.llm_engine.vllm_config.model_config.max_model_len

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids; with the special tokens that begin a request when `special`."""
        return self.tokenizer(text, add_special_tokens=special, verbose=False).input_ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(tokens)

    def to_model_tokens(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Convert `sequences` to the token ids of the model itself."""
        return [list(sequence) for sequence in sequences]

    def merge_to_model_tokens(self, top_k: TopK) -> TopK:
        """Distributions over full's tokens as distributions over the tokens of the model itself, in full's ids."""
        return top_k

    def top_logprobs(self, sequences: Sequence[Sequence[int]], top: int, done: OnDone) -> TopK:
        """The `top` most likely next tokens at every position of every sequence but its last, concatenated.

        Asking for prompt log-probabilities makes vLLM skip its prefix cache, so every position is computed.
        """
        ids, logprobs = [], []
        # a few at a time: the answers are Python lists of millions of numbers
        for row_ids, row_logprobs in self._prompt_logprobs(sequences, top, 4, done):
            ids.append(row_ids)
            logprobs.append(row_logprobs)
        everything = np.concatenate(logprobs)
        return TopK(np.concatenate(ids)[:, 1:], everything[:, 1:], everything[:, 0])

    def target_logprobs(self, sequences: Sequence[Sequence[int]], done: OnDone) -> list[NDArray[np.float32]]:
        """Log-probability of each token of each sequence but its first, given those before it."""
        return [logprobs[:, 0] for _, logprobs in self._prompt_logprobs(sequences, 0, 16, done)]

    def generate_greedy(
        self, prompts: Sequence[Sequence[int]], tokens: int, done: OnDone, stop: Sequence[str] = ()
    ) -> list[tuple[list[int], str]]:
        """The most likely answers of up to `tokens` tokens, as token ids and as text without the `stop` string."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=tokens, temperature=0, stop=list(stop) or None)
        answers = (answer.outputs[0] for answer in self._generate(prompts, params, 16, done))
        return [(list(answer.token_ids), answer.text) for answer in answers]

    def _prompt_logprobs(
        self, sequences: Sequence[Sequence[int]], top: int, batch: int, done: OnDone
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Ids and log-probabilities, (positions, 1 + top) each; the token that follows comes first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=top, detokenize=False, flat_logprobs=True)
        rows = []
        for answer in self._generate(sequences, params, batch, done):
            flat = answer.prompt_logprobs
            ids = np.array(flat.token_ids, dtype=np.int32).reshape(-1, top + 1)
            rows.append((ids, np.array(flat.logprobs, dtype=np.float32).reshape(-1, top + 1)))
        return rows

    def _generate(
        self, prompts: Sequence[Sequence[int]], params: "SamplingParams", batch: int, done: OnDone
    ) -> "Iterator[RequestOutput]":
        from vllm import TokensPrompt

        for start in range(0, len(prompts), batch):
            rows = [TokensPrompt(prompt_token_ids=list(row)) for row in prompts[start : start + batch]]
            yield from self.llm.generate(rows, params, use_tqdm=False)
            done(start + len(rows))
