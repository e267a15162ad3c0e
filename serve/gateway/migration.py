"""Migration: where a stream goes on whose engine died or stalled, within a bound on the load that this adds."""

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from time import perf_counter

from serve.config.platform import PlatformConfig
from serve.errors import RequestError
from serve.gateway.continuation import NotContinuable
from serve.gateway.engine_client import Engines
from serve.gateway.request_admission import RequestAdmission
from serve.gateway.response_stream import InterruptionCause, ResponseStream
from serve.gateway.resumed_prefill_limit import ResumedPrefillLimit
from serve.request.lifecycle import Attempt
from serve.routing.catalog import Variant
from serve.routing.router import Decision
from serve.telemetry.metrics import Metrics

MAX_CONTINUATIONS = 2  # of one request
MAX_RESUMED_PREFILL_SHARE = 0.2  # of the requests in flight that may read their prompts again at a time
MIN_RESUMED_PREFILLS = 3  # that may do so however few are in flight
DEFAULT_RESUME_S = 1.0  # until a stream should go on that has no limits


class Migration:
    """Chooses the replica or variant that continues a stream."""

    def __init__(
        self,
        config: PlatformConfig,
        variants: Mapping[str, Variant],
        engines: Engines,
        admission: RequestAdmission,
        metrics: Metrics,
    ) -> None:
        self._variants, self._engines, self._admission, self._metrics = variants, engines, admission, metrics
        self._model = config.model.name
        # these engines write part of an answer elsewhere than a completion does
        self._reasoning = {v.name for v in config.variants if config.serving_args(v).get("reasoning_parser")}
        self._resumed_prefills = ResumedPrefillLimit(self._max_resumed_prefills)

    def keeps_tokens(self, variant: Variant) -> bool:
        """Whether the streams of `variant` can be continued."""
        return variant.name not in self._reasoning

    async def next_attempt(
        self, stream: ResponseStream, last: Attempt, broken: Set[str], cause: InterruptionCause
    ) -> Attempt:
        """The attempt that continues `stream`: at another replica of the variant, else at another variant.

        It has its place at the engine at once, before new requests, and waits for its turn to be read. `stream.first_token` ends
        that turn, and records the migration when the first token has come.

        Args:
            stream: what the client has.
            last: the attempt that was interrupted.
            broken: replicas (base URLs) that this request avoids.
            cause: of the interruption.

        Raises:
            NotContinuable: the stream cannot be continued exactly, or nowhere.
            EngineUnreachable: the replica that detokenizes could not be reached.
            RequestError: another variant refuses the request.
        """
        decision, first = self._decide(stream, last, broken), last.continues or last
        resume_by = _resume_by(decision, first, len(stream.continuation.tokens), perf_counter())
        live, place = decision.variant.live, (last.call.sequences, decision.chosen.load.replica)
        live.take_place(*place)
        try:
            await self._cut(stream, decision, broken)
            release = await self._resumed_prefills.acquire(resume_by)
        except BaseException:
            stream.drop_check()
            raise
        finally:
            live.on_complete(*place)  # it is counted again when it is dispatched, before anything else runs
        attempt = Attempt(last.request, decision, perf_counter(), continues=first, resume_by=resume_by)
        at_token = len(stream.continuation.tokens)

        def first_token() -> None:
            release()
            stream.drop_check()
            stream.first_token = lambda: None
            if attempt.first_token_at:
                self._metrics.migrations.labels(last.variant.name, cause).inc()
                last.request.migrations.append(
                    {
                        "from": last.variant.name, "from_replica": _label(last.reached), "to": decision.variant.name,
                        "to_replica": _label(attempt.reached), "at_token": at_token, "reason": cause,
                    }
                )  # fmt: skip

        stream.first_token = first_token
        return attempt

    async def _cut(self, stream: ResponseStream, decision: Decision, broken: Set[str]) -> None:
        async def detokenize(tokens: Sequence[int]) -> str:
            replica = decision.chosen.load.replica
            return await self._engines.detokenize(decision.variant, self._model, tokens, broken, replica)

        if (check := await stream.cut(detokenize)) is not None:
            stream.check = asyncio.ensure_future(check)  # while the prompt is read

    def _decide(self, stream: ResponseStream, last: Attempt, broken: Set[str]) -> Decision:
        prompt, same = len(stream.continuation.prompt), last.variant.name
        # its first token has long arrived; what counts now is that it goes on
        relaxed = {"ttft_ms": None, "e2e_ms": None, "on_no_candidate": "degrade"}
        request = replace(last.request, budget=last.request.budget.model_copy(update=relaxed))
        able: set[str] = set()
        if last.call.ref.variant is None:
            able = {n for n, v in self._variants.items() if n != same and self._continues(v, last, prompt, broken)}
        others = {name for name in able if _keeps_quality(self._variants[name], last)}
        choices = [{same}] if self._engines.has_replica(last.variant, broken) else []
        choices += [others] if others else []
        refused: RequestError | None = None
        for full in (False, True):  # a stream that an engine has to queue goes on later, one without an engine never
            for names in choices:
                try:
                    return self._admission.decide_begun(request, (self._variants.keys() - names) | broken, full)
                except RequestError as error:
                    refused = error
        if refused is not None:
            raise refused
        if last.call.ref.variant is not None:
            raise NotContinuable("no other replica continues it", "model")
        raise NotContinuable("no other variant continues it", "budget" if able else None)

    def _continues(self, variant: Variant, last: Attempt, prompt_tokens: int, broken: Set[str]) -> bool:
        """Whether `variant` may continue the answer that `last` started: same tokens, and room for the whole answer."""
        call, before = last.call, last.variant
        room = variant.max_model_len >= before.max_model_len or (
            call.limits_output and prompt_tokens + call.max_output_tokens <= variant.max_model_len
        )
        return (
            room
            and self._engines.has_replica(variant, broken)
            and self.keeps_tokens(variant)
            and tokenizer(variant, self._variants) == tokenizer(before, self._variants)
        )

    def _max_resumed_prefills(self) -> int:
        in_flight = sum(variant.live.in_flight for variant in self._variants.values())
        return max(MIN_RESUMED_PREFILLS, math.ceil(MAX_RESUMED_PREFILL_SHARE * in_flight))


def _resume_by(decision: Decision, first: Attempt, tokens: int, now: float) -> float:
    """When a stream of `tokens` tokens should go on, to keep the limits of its budget on the time per token and in all.

    Soon, where it has none, or cannot keep them any more: then others may.
    """
    budget, expected = first.request.budget, decision.chosen.prediction.expected
    left = max(1 - tokens / max(decision.features.output_tokens, 1), 0.0)  # of the expected answer
    limits = []
    if budget.tpot_ms is not None:
        limits.append(first.first_token_at + tokens * budget.tpot_ms / 1000)
    if budget.e2e_ms is not None:
        limits.append(first.request.arrived + (budget.e2e_ms - left * (expected.e2e_ms - expected.ttft_ms)) / 1000)
    by = min(limits, default=0.0)
    return by if by > now else now + DEFAULT_RESUME_S


def _keeps_quality(variant: Variant, last: Attempt) -> bool:
    """Whether the quality of `variant` meets the budget, or is not below that of the variant of `last`."""
    floor, quality = last.request.budget.min_quality, variant.quality.quality
    return floor is None or quality >= min(floor, last.variant.quality.quality)


def _label(replica: str | None) -> str | None:
    """A name for a replica that does not show its address."""
    return replica and hashlib.sha256(replica.encode()).hexdigest()[:8]


def tokenizer(variant: Variant, variants: Mapping[str, Variant]) -> str:
    """Name of the variant whose tokenizer `variant` has: its own where the vocabulary was pruned, else its parent's."""
    card = variant.card
    while not any(step.parameters.get("vocabulary") for step in card.steps):
        if card.parent is None or card.parent not in variants:
            return card.parent or card.name
        card = variants[card.parent].card
    return card.name
