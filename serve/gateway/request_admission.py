"""Admission of requests at the gateway: the decision for each, its wait for a place, and what its answer teaches routing."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from time import perf_counter

from serve.budget import Budget
from serve.errors import RequestError, origin_of
from serve.gateway.grounding import BudgetCheck
from serve.request.call import Call
from serve.request.caller import Caller
from serve.request.lifecycle import Attempt, Request
from serve.routing import learned_state
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.output_lengths import OutputLengths
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features, Load
from serve.routing.router import Decision, Router, too_many_sequences
from serve.routing.waiting_queue import Waiting
from serve.telemetry.metrics import Metrics

_LOG = logging.getLogger("gearbox.gateway")


class RequestAdmission:
    """Decides about the requests of one gateway, and lets them wait."""

    def __init__(self, variants: Mapping[str, Variant], metrics: Metrics) -> None:
        self._variants = variants
        self._queue = Admission(Router(WithinBudget()))
        self._lengths = OutputLengths()
        self._metrics = metrics

    def learned(self) -> bytes:
        """What routing has learned, for another gateway's `restore`."""
        return learned_state.dump(self._variants.values(), self._lengths, self._queue)

    def restore(self, data: bytes) -> bool:
        """Begin with what another gateway has learned. Raises as `serve.routing.learned_state.restore`."""
        return learned_state.restore(data, self._variants.values(), self._lengths, self._queue)

    def loads(self) -> list[tuple[Variant, Load]]:
        """The load of each variant now."""
        return self._queue.router.loads(list(self._variants.values()))

    def refresh(self) -> None:
        """Follow the speed of the engines and the offered work, and start what waited; called regularly."""
        variants = list(self._variants.values())
        for variant, load in self.loads():
            variant.latency.observe_steps(*variant.live.take_steps(), load)
            variant.latency.tick()
        self._queue.roll(variants, perf_counter())
        self._metrics.waiting.set(len(self._queue))
        for profile, margin in self._queue.classes.margins().items():
            self._metrics.margin.labels(profile).set(margin)

    def decide(
        self, call: Call, caller: Caller, budget: Budget, more_chars: int = 0, elapsed_s: float = 0.0
    ) -> Decision:
        """The decision for `call`, which arrived `elapsed_s` ago, with a prompt `more_chars` longer.

        Raises `RequestError` when it would be refused.
        """
        now = perf_counter()
        waiting = self._waiting(call, caller, budget, now - elapsed_s, (), lambda _: None, more_chars)
        try:
            return self._queue.decide(list(self._variants.values()), waiting, now)
        except RequestError as error:
            raise _with_param(error, call) from error

    def admitted_shares(self) -> dict[str, float]:
        """Share of the replicas' time that each tenant's admitted requests took of late."""
        return self._queue.admitted_shares()

    def budget_check(self, call: Call, caller: Caller, budget: Budget, arrived: float) -> BudgetCheck:
        """Return a check whether some variant meets `budget` with a longer prompt and a later start.

        If none meets it even without sources, the check is only whether the longer prompt fits a context.
        """

        def miss(more_chars: int, more_s: float) -> bool:
            try:
                decision = self.decide(call, caller, budget, more_chars, perf_counter() - arrived + more_s)
            except RequestError as error:
                if error.code == "overloaded":  # for any prompt
                    return False
                raise
            return decision.chosen.overflows or (decision.wait_ms == 0 and decision.chosen.explanation is not None)

        def within_budget(more_chars: int, more_s: float) -> bool:
            try:
                return missed or not miss(more_chars, more_s)
            except RequestError:
                return False

        try:
            missed = miss(0, 0)
        except RequestError:
            missed = False
        return within_budget

    def check_size(self, call: Call) -> None:
        """Reject a request that exceeds every variant, even if no variant is needed. Raises `RequestError` 400."""
        variants = [variant for variant in self._variants.values() if call.ref.variant in (None, variant.name)]
        if not variants:
            return  # no variant is up: limits are unknown
        if call.sequences > (max_sequences := max(variant.max_running + variant.max_waiting for variant in variants)):
            raise too_many_sequences(call.sequences, max_sequences)
        if call.limits_output and call.max_output_tokens > (
            max_context := max(variant.max_model_len for variant in variants)
        ):
            message = (
                f"This model's maximum context length is {max_context} tokens, fewer than the limit of the answer."
            )
            param = "max_tokens" if call.body.get("max_completion_tokens") is None else "max_completion_tokens"
            raise RequestError(400, message, param=param, code="context_length_exceeded")

    async def admit(self, request: Request, failed: Collection[str]) -> tuple[Decision, float]:
        """Wait for the place of `request`; also the seconds that deciding took. Raises `RequestError` when it is refused."""
        call = request.call
        admitted: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

        def decided(found: Decision | RequestError) -> None:
            if admitted.done():  # the client has gone
                return
            if isinstance(found, RequestError):
                admitted.set_exception(_with_param(found, call))
            else:
                found.variant.live.take_place(
                    call.sequences, found.chosen.load.replica
                )  # until the request continues below
                admitted.set_result(found)

        waiting = self._waiting(call, request.caller, request.budget, request.arrived, failed, decided)
        waiting.profile, waiting.counted = request.profile, bool(request.attempts)
        started = perf_counter()
        self._queue.submit(list(self._variants.values()), waiting, started)
        decision_s = perf_counter() - started
        try:
            decision = await admitted
        except asyncio.CancelledError:
            self._queue.withdraw(waiting)
            if not admitted.cancelled() and admitted.exception() is None:
                found = admitted.result()
                found.variant.live.on_complete(call.sequences, found.chosen.load.replica)
            self.start_waiting()  # the next may have the place
            raise
        decision.variant.live.on_complete(call.sequences, decision.chosen.load.replica)
        return decision, decision_s

    def decide_now(self, request: Request, failed: Collection[str]) -> Decision | None:
        """The decision for `request` if it may start now, within what is left of its budget; None if not, or if others wait."""
        if len(self._queue):
            return None
        now = perf_counter()
        waiting = self._waiting(request.call, request.caller, request.budget, request.arrived, failed, lambda _: None)
        try:
            decision = self._queue.decide(list(self._variants.values()), waiting, now)
        except RequestError:
            return None
        chosen = decision.chosen
        return decision if not decision.wait_ms and not chosen.harm and chosen.ruled_out is None else None

    def decide_begun(self, request: Request, failed: Collection[str], full: bool) -> Decision:
        """The decision where an answer that was begun goes on, now: new requests make room for it.

        `full`: also at replicas that may not take more requests. Raises `RequestError`.
        """
        now = perf_counter()
        waiting = self._waiting(request.call, request.caller, request.budget, request.arrived, failed, lambda _: None)
        return self._queue.decide_begun(list(self._variants.values()), waiting, now, full)

    def start_waiting(self) -> None:
        """Start what waits for a place; an error concerns none of the requests that call this."""
        try:
            self._queue.pump(list(self._variants.values()), perf_counter())
        except Exception as error:
            _LOG.error("starting waiting requests failed: %s", origin_of(error))

    def _waiting(
        self,
        call: Call,
        caller: Caller,
        budget: Budget,
        arrived: float,
        failed: Collection[str],
        decided: Callable[[Decision | RequestError], None],
        more_chars: int = 0,
    ) -> Waiting:
        any_variant = next(iter(self._variants.values()), None)
        # without variants the router rejects the request anyway
        chars_per_token = any_variant.card.chars_per_token if any_variant else 4.0
        prompt_tokens = call.prompt_tokens + round((call.prompt_chars + more_chars) / chars_per_token) + 1
        longest = max((variant.max_model_len for variant in self._variants.values()), default=call.max_output_tokens)
        max_output = min(call.max_output_tokens, longest)
        expected = self._lengths.expect(caller.tenant, call.ref.profile or caller.budget, max_output)
        expected = max(expected, min(call.min_output_tokens, longest - round(prompt_tokens * call.longest)))
        context_tokens = round(prompt_tokens * call.longest) + (call.max_output_tokens if call.limits_output else 1)
        features = Features(prompt_tokens, expected, call.blocks, call.sequences, context_tokens)
        return Waiting(
            budget, features, arrived, decided, call.ref.variant, failed, tenant=caller.tenant, weight=caller.weight
        )

    def observe(self, attempt: Attempt) -> None:
        """Update the predictors from a complete response. For several sequences only the output length is learned."""
        if (took := attempt.latency) is None:
            return
        caller, call = attempt.request.caller, attempt.call
        tokens = round(attempt.report.completion_tokens / call.sequences)
        self._lengths.observe(caller.tenant, call.ref.profile or caller.budget, tokens)
        if call.sequences > 1 or attempt.client_blocked:  # times of the client, not of the engine
            return
        attempt.decision.chosen.prediction.observe(took.ttft_ms, took.tpot_ms or None, took.e2e_ms)
        if attempt.request.budget.timed and attempt.decision.reason not in ("pinned", "nearest_miss"):
            self._queue.class_of(attempt.request.budget).observe(attempt.decision, took)


def _with_param(error: RequestError, call: Call) -> RequestError:
    if error.code == "too_many_sequences" and call.choices == 1:
        error.param = "prompt"
    return error
