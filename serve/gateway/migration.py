"""Migration: where a stream goes on whose engine died or stalled, within a bound on the load that this adds."""

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from serve.config.platform import PlatformConfig
from serve.errors import RequestError
from serve.gateway.continuation import NotContinuable
from serve.gateway.engine_client import Engines
from serve.gateway.request_admission import RequestAdmission
from serve.gateway.response_stream import Cause, ResponseStream
from serve.request.lifecycle import Attempt
from serve.routing.catalog import Variant
from serve.routing.router import Decision
from serve.telemetry.metrics import Metrics

MAX_CONTINUATIONS = 2  # of one request
SHARE = 0.2  # of the requests in flight that may read their prompts again at a time
MIN_READING = 3  # that may do so however few are in flight
WAIT_S = 10.0  # for that


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
        self._reading = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    def keeps_tokens(self, variant: Variant) -> bool:
        """Whether the streams of `variant` can be continued."""
        return variant.name not in self._reasoning

    async def next_attempt(self, stream: ResponseStream, last: Attempt, broken: Set[str], cause: Cause) -> Attempt:
        """The attempt that continues `stream`: at another replica of the variant, else at another variant.

        Waits until the continuation may read its prompt. `stream.first_token` ends that, and records the migration when the
        first token has come.

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
        give_back = await self._place()
        try:
            decision = await self._decide(stream, last, broken)
            await self._cut(stream, decision.variant, broken)
        except BaseException:
            give_back()
            raise
        attempt = Attempt(last.request, decision, perf_counter(), continues=last.continues or last)
        at_token = len(stream.continuation.tokens)

        def first_token() -> None:
            give_back()
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

    async def _cut(self, stream: ResponseStream, variant: Variant, broken: Set[str]) -> None:
        async def detokenize(tokens: Sequence[int]) -> str:
            return await self._engines.detokenize(variant, self._model, tokens, broken)

        await stream.cut(detokenize)

    async def _decide(self, stream: ResponseStream, last: Attempt, broken: Set[str]) -> Decision:
        prompt, same = len(stream.continuation.prompt), last.variant.name
        # its first token has long arrived; what counts now is that it goes on
        relaxed = {"ttft_ms": None, "e2e_ms": None, "on_no_candidate": "degrade"}
        request = replace(last.request, budget=last.request.budget.model_copy(update=relaxed))
        if self._engines.has_replica(last.variant, broken):
            with suppress(RequestError):  # it is full
                decision, _ = await self._admission.admit(request, (self._variants.keys() - {same}) | broken)
                return decision
        if last.call.ref.variant is not None:
            raise NotContinuable("no other replica continues it", "model")
        able = {n for n, v in self._variants.items() if n != same and self._continues(v, last, prompt, broken)}
        others = {name for name in able if _keeps_quality(self._variants[name], last)}
        if not others:
            raise NotContinuable("no other variant continues it", "budget" if able else None)
        decision, _ = await self._admission.admit(request, (self._variants.keys() - others) | broken)
        return decision

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

    async def _place(self) -> Callable[[], None]:
        """Wait until this continuation may read its prompt: all at once would slow down the other requests.

        Returns what gives the place back, at the first token or the failure of the continuation; it may be called repeatedly.
        Raises `NotContinuable` when none is free in time.
        """
        if self._reading >= self._places:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                async with asyncio.timeout(WAIT_S):
                    await turn
            except (TimeoutError, asyncio.CancelledError) as error:
                self._wake()  # if it was its turn at last, it is that of the next
                if isinstance(error, TimeoutError):
                    raise NotContinuable("too many streams are being continued") from error
                raise
        self._reading += 1
        held = [None]

        def give_back() -> None:
            if held:
                held.clear()
                self._reading -= 1
                self._wake()

        return give_back

    def _wake(self) -> None:
        while self._queue and self._reading < self._places:
            if not (turn := self._queue.popleft()).done():  # done: it waited too long, or its client has gone
                return turn.set_result(None)

    @property
    def _places(self) -> int:
        in_flight = sum(variant.live.in_flight for variant in self._variants.values())
        return max(MIN_READING, math.ceil(SHARE * in_flight))


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
