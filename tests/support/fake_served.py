"""A stand-in for the served engine where only the mathematics around it is tested: one token a character, scripted answers."""

from collections.abc import Callable, Sequence

import numpy as np

from compression.measure.divergence import TopK


class FakeServed:
    """Answers every prompt from `answers`; the log-probability of each character is `likelihood` of it, else -2."""

    def __init__(
        self,
        answers: Callable[[str], str] = lambda prompt: "",
        likelihood: dict[str, float] | None = None,
        max_model_len: int = 1000,
        top: Callable[[Sequence[Sequence[int]], int], TopK] | None = None,
    ) -> None:
        self._answers, self._likelihood, self._top = answers, likelihood or {}, top
        self.max_model_len = max_model_len
        self.prompts: list[str] = []

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def merge_to_model_tokens(self, top_k: TopK) -> TopK:
        return top_k

    def top_logprobs(self, sequences, top, done) -> TopK:
        done(len(sequences))
        return self._top(sequences, top)

    def target_logprobs(self, sequences, done) -> list[np.ndarray]:
        done(len(sequences))
        self.prompts += map(self.decode, sequences)
        return [np.array([self._likelihood.get(chr(t), -2.0) for t in row[1:]], np.float32) for row in sequences]

    def generate_greedy(self, prompts, tokens, done, stop=()) -> list[tuple[list[int], str]]:
        done(len(prompts))
        self.prompts += map(self.decode, prompts)
        texts = [self._answers(self.decode(prompt))[:tokens] for prompt in prompts]
        for mark in stop:
            texts = [text.split(mark)[0] for text in texts]
        return [(self.encode(text), text) for text in texts]
