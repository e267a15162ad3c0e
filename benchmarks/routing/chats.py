"""Multi-turn chats: each turn's prompt is the whole chat so far, and comes some time after the answer before it."""

import functools
import itertools
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.routing.prefix_cache import BLOCK_TOKENS
from benchmarks.routing.workloads import poisson
from serve.card import Profile

SYSTEM_TOKENS = (40, 150, 300, 600)  # of the applications' system prompts
POPULARITY = (0.3, 0.4, 0.2, 0.1)  # of the applications
MESSAGE, ANSWER = (40, 0.8), (50, 0.6)  # medians in tokens and sigmas of log-normal lengths
MORE_TURNS = 0.8  # chance of one more
THINK_S = 12.0  # mean time between an answer and the next message
LONGEST = 1900  # tokens of a chat


@dataclass(slots=True, frozen=True)
class Turn:
    """One turn; lengths in tokens. `think_s` after the answer before it, `new_tokens` of its prompt were in no turn before."""

    prompt_tokens: int
    output_tokens: int
    new_tokens: int
    think_s: float


@dataclass(slots=True, frozen=True)
class Chat:
    """A chat that begins at `at` ms with the system prompt of `application`."""

    number: int
    at: float
    application: int
    turns: Sequence[Turn]

    def blocks(self, tokens: int) -> tuple[int, ...]:
        """Identities of the complete blocks of its first `tokens`; those of the system prompt are the application's."""
        shared = SYSTEM_TOKENS[self.application] // BLOCK_TOKENS
        return tuple(
            hash((0, self.application, i) if i < shared else (1, self.number, i)) for i in range(tokens // BLOCK_TOKENS)
        )


def chats(rate_per_s: float, seed: int) -> Iterator[Chat]:
    """Chats that begin as a Poisson process."""
    drawn = random.Random(seed + 1000)
    for number, at in enumerate(poisson(rate_per_s, seed)):
        application = drawn.choices(range(len(SYSTEM_TOKENS)), POPULARITY)[0]
        turns: list[Turn] = []
        before = 0
        while not turns or drawn.random() < MORE_TURNS:
            message, answer = (
                max(4, round(drawn.lognormvariate(math.log(median), sigma))) for median, sigma in (MESSAGE, ANSWER)
            )
            prompt = before + message + (0 if turns else SYSTEM_TOKENS[application])
            think_s = drawn.expovariate(1 / THINK_S)
            if prompt + answer > LONGEST:
                break
            turns.append(Turn(prompt, answer, prompt - before, think_s))
            before = prompt + answer
        if turns:
            yield Chat(number, at, application, turns)


@functools.cache
def chats_per_s(profile: Profile, sample: int = 4000) -> float:
    """Chats per second that one replica sustains by its profile, if it reads nothing twice."""
    work_s = (
        sum(turn.new_tokens / profile.prefill_tokens_per_s + turn.output_tokens / profile.decode_tokens_per_s for turn in chat.turns)
        for chat in itertools.islice(chats(1.0, 0), sample)
    )  # fmt: skip
    return 1 / statistics.fmean(work_s)
