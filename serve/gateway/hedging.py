"""Hedging: send a request whose TTFT limit is at risk to a second replica, and use the response that starts first.

Hedges are bounded as gRPC bounds retries (`retryThrottling`): each request adds `TOKEN_RATIO` to a count, each hedge takes one
from it. Only a request's first attempt is hedged, once.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import Any

from serve.errors import origin_of
from serve.gateway.engine_client import Engines, EngineUnreachable
from serve.gateway.request_admission import RequestAdmission
from serve.request.lifecycle import Attempt
from serve.routing.candidate import CONFIDENCE
from serve.telemetry.metrics import Metrics

TOKEN_RATIO = 0.02  # of the requests that are hedged at most
MAX_TOKENS = 3.0  # hedges in a row at most
SPARE = 2.0  # predicted 95% bounds of the TTFT that are left of the limit when a request is hedged
_LOG = logging.getLogger("gearbox.gateway")

#: Answers the client by an attempt, and calls the function when the first token has arrived and before anything is sent.
Answering = Callable[[Attempt, Callable[[], None]], Coroutine[Any, Any, None]]


class Hedging:
    """Decides when and where the requests of one gateway are sent a second time."""

    def __init__(self, enabled: bool, engines: Engines, admission: RequestAdmission, metrics: Metrics) -> None:
        self._enabled, self._engines, self._admission, self._metrics = enabled, engines, admission, metrics
        self._tokens = 0.0

    async def run(self, attempt: Attempt, answer: Answering) -> None:
        """Have `attempt` answer, or a hedge of it. Raises what `answer` raises: of `attempt`, where neither has a first token."""
        delay_s = self._delay_s(attempt)
        if delay_s is None:
            await answer(attempt, lambda: None)
        else:
            await _Race(attempt, answer, self._hedge, self._metrics).run(delay_s)

    def _delay_s(self, attempt: Attempt) -> float | None:
        """Time without a first token after which the request should be hedged, s; None if it is not to be.

        The TTFT limit is at risk when the engine took longer than the predicted 95% bound, and so little of the limit is left
        that another engine would need it. Of an answer that is not streamed, only the end is seen.
        """
        request = attempt.request
        if not self._enabled or request.attempts:
            return None
        self._tokens = min(self._tokens + TOKEN_RATIO, MAX_TOKENS)
        if (limit_ms := request.budget.ttft_ms) is None:
            return None
        bound = attempt.decision.chosen.prediction.tail(CONFIDENCE)
        left_ms = limit_ms - _elapsed_ms(attempt)
        delay_ms = max(bound.ttft_ms if attempt.call.stream else bound.e2e_ms, left_ms - SPARE * bound.ttft_ms)
        return delay_ms / 1000 if delay_ms < left_ms else None

    def _hedge(self, attempt: Attempt) -> Attempt | None:
        """The hedge of `attempt`, at a replica that meets what is left of the budget by prediction; None where there is none."""
        request, variant = attempt.request, attempt.variant
        if _elapsed_ms(attempt) >= (request.budget.ttft_ms or 0.0):
            return None
        if self._tokens < 1.0:
            self._metrics.hedges.labels(variant.name, "throttled").inc()
            return None
        slow, urls = attempt.reached or attempt.replica, self._engines.urls(variant.name)
        known = variant.live.by_replica.keys()
        # for one that is avoided, also by chance, the hedge would come to the replica that is late
        avoided = self._engines.health.avoided(urls, perf_counter(), lambda: 1.0)
        others = (known & set(urls)) - avoided - {slow}
        decision = self._admission.decide_now(request, known - others if slow and others else {variant.name})
        if decision is None:
            return None
        self._tokens -= 1.0
        _LOG.info(
            "request %s is hedged: no answer of variant %s after %.0f ms, sent to variant %s too",
            request.id, variant.name, _elapsed_ms(attempt), decision.variant.name,
        )  # fmt: skip
        return Attempt(request, decision, perf_counter())


class _Race:
    """An attempt and its hedge: the first that has its first token wins, and the other one is cancelled.

    The attempt runs in the request's own task: it is dispatched before other requests see the load without it. So the hedge does
    in a task that decides about it first.
    """

    def __init__(
        self, first: Attempt, answer: Answering, hedge: Callable[[Attempt], Attempt | None], metrics: Metrics
    ) -> None:
        if (task := asyncio.current_task()) is None:
            raise RuntimeError("requests run in tasks")
        self._first, self._answer, self._hedge, self._metrics = first, answer, hedge, metrics
        self._task: asyncio.Task[Any] = task
        self._timer: asyncio.TimerHandle | None = None
        self._second: asyncio.Task[None] | None = None
        self._first_runs = True
        self._first_won = self._hedge_won = False

    async def run(self, delay_s: float) -> None:
        """Run the attempt, and the hedge if there is no first token after `delay_s`."""
        cancelled = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._start)
        try:
            try:
                return await self._answer(self._first, self._on_first)
            except asyncio.CancelledError:
                if not self._hedge_won or self._task.uncancel() > cancelled:
                    raise  # by the client
            except EngineUnreachable:
                self._first_runs = False
                if self._second is not None:
                    await asyncio.wait((self._second,))
                if not self._hedge_won:
                    raise
            if self._second is not None:
                await self._second
        finally:
            self._timer.cancel()
            if self._second is not None:
                if not self._hedge_won and not self._first_won:
                    _answers(self._first)  # with an error
                self._second.cancel()
                (ended,) = await asyncio.gather(self._second, return_exceptions=True)
                if isinstance(ended, Exception) and not self._hedge_won:
                    _LOG.warning("the hedge of request %s failed: %s", self._first.request.id, origin_of(ended))

    def _start(self) -> None:
        self._second = asyncio.get_running_loop().create_task(self._run_hedge())

    async def _run_hedge(self) -> None:
        if (hedge := self._hedge(self._first)) is None:
            return
        try:
            await self._answer(hedge, partial(self._on_hedge, hedge))
        finally:
            outcome = "won" if self._hedge_won else "lost"
            self._metrics.hedges.labels(self._first.variant.name, outcome).inc()

    def _on_first(self) -> None:
        self._first_won = True
        if self._timer is not None:
            self._timer.cancel()
        if self._second is not None:
            self._second.cancel()
        _answers(self._first)

    def _on_hedge(self, hedge: Attempt) -> None:
        self._hedge_won = True
        if self._first_runs:
            self._task.cancel()
        _answers(hedge)


def _answers(winner: Attempt) -> None:
    """Make `winner` the last of the request's attempts, which is the one that answers."""
    winner.request.attempts.sort(key=lambda attempt: attempt is winner)


def _elapsed_ms(attempt: Attempt) -> float:
    return (perf_counter() - attempt.request.arrived) * 1000
