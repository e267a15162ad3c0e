"""Active requests: what is left of the limits of a request that an engine works on."""

import math

from serve.budget import Budget

_MORE = 0.25  # of the expected answer that is still to come once it is longer than expected


class ActiveRequest:
    """One request at an engine. Times are seconds of the caller's clock.

    Args:
        budget: its limits, counted from `arrived`.
        output_tokens: expected, of each sequence.
        step_ms: predicted time per token, of an answer that is not streamed; its tokens are not seen.
    """

    __slots__ = ("_e2e_at", "_expected", "_step_ms", "_tpot_ms", "_ttft_at", "first_at", "tokens")

    def __init__(self, budget: Budget, arrived: float, output_tokens: int, step_ms: float | None = None) -> None:
        self._ttft_at = math.inf if budget.ttft_ms is None else arrived + budget.ttft_ms / 1000
        self._e2e_at = math.inf if budget.e2e_ms is None else arrived + budget.e2e_ms / 1000
        self._tpot_ms = math.inf if budget.tpot_ms is None else budget.tpot_ms
        self._expected, self._step_ms = output_tokens, step_ms
        self.first_at = 0.0  # of the first token; 0 before it
        self.tokens = 0.0  # generated so far, of each sequence

    def remaining_tokens(self, now: float) -> float:
        """Tokens that each sequence is still expected to get."""
        if self._step_ms and self.first_at:
            self.tokens = (now - self.first_at) * 1000 / self._step_ms
        return max(self._expected - self.tokens, self._expected * _MORE, 1.0)

    def step_limit_ms(self, now: float) -> float:
        """The longest mean time per token, from `now` on, that keeps its limits: infinite without limits, 0 when it is late."""
        remaining = self.remaining_tokens(now)
        limit = (self._e2e_at - now) * 1000 / remaining
        if not self.first_at:
            return 0.0 if now > self._ttft_at else max(min(limit, self._tpot_ms), 0.0)
        if self._tpot_ms < math.inf:
            passed_ms = (now - self.first_at) * 1000
            limit = min(limit, (self._tpot_ms * (self.tokens + remaining - 1) - passed_ms) / remaining)
        return max(limit, 0.0)
