"""Generation requests: resolve the budget, have the request admitted, have it answered, record telemetry; with failover.

A request whose replica fails before the first token is routed again with the rest of its budget: to another replica of the
variant if there is one, else to another variant. One whose replica is late may be sent to a second one, see `hedging`. A stream
that is interrupted later is continued, see `continuation`. One attempt at a replica is in `attempt_runner`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import orjson

from serve.budget import Budget, resolve_budget
from serve.config.platform import PlatformConfig
from serve.errors import ErrorCode, RequestError, internal_error
from serve.gateway.attempt_runner import AttemptRunner
from serve.gateway.auth import Gatekeeper
from serve.gateway.continuation import NotContinuable
from serve.gateway.engine_client import Engines, EngineUnreachable
from serve.gateway.engine_errors import ContextTooLong, context_length_error
from serve.gateway.grounding import Grounder
from serve.gateway.hedging import Hedging
from serve.gateway.http import EVENT_STREAM, Headers, Send, reply
from serve.gateway.migration import MAX_CONTINUATIONS, Migration
from serve.gateway.request_admission import RequestAdmission
from serve.gateway.response_metadata import synthetic_gearbox_object, synthetic_headers
from serve.gateway.response_stream import ResponseStream, StreamInterrupted
from serve.gateway.sse_relay import error_event
from serve.request.call import Call
from serve.request.caller import Caller
from serve.request.grounding import Grounding
from serve.request.lifecycle import CUSTOM, Arrival, Attempt, Request
from serve.request.synthetic_completion import SyntheticCompletion, calls_function, documents
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_telemetry import RequestTelemetry

MAX_FAULTS = 3  # replicas that may fail on one request, because the request itself may be the cause
_LOG = logging.getLogger("gearbox.gateway")


@dataclass(slots=True)
class _Tried:
    """Where one request failed before its first token."""

    failed: set[str] = field(default_factory=set)  # variants
    short: set[str] = field(default_factory=set)  # those of them whose context is too short
    broken: set[str] = field(default_factory=set)  # base URLs of replicas
    faults: int = 0  # replicas that may have broken over it
    moved_from: tuple[str, str] | None = None  # the variant left last and the cause, until it is admitted elsewhere


class Generation:
    """Answers chat-completions and completions requests."""

    def __init__(
        self,
        config: PlatformConfig,
        variants: Mapping[str, Variant],
        engines: Engines,
        gatekeeper: Gatekeeper,
        metrics: Metrics,
        telemetry: RequestTelemetry,
        admission: RequestAdmission,
        grounder: Grounder,
    ) -> None:
        self._config = config
        self._telemetry = telemetry
        self._grounder = grounder
        self._admission = admission
        self._variants = variants
        self._engines = engines
        self._migration = migration = Migration(config, variants, engines, admission, metrics)
        self._attempts = AttemptRunner(
            config, engines, gatekeeper, metrics, telemetry, admission, grounder, migration.keeps_tokens
        )
        self._hedging = Hedging(config.server.hedging, engines, admission, metrics)
        self._gatekeeper = gatekeeper
        self._metrics = metrics

    def reconfigure(self, config: PlatformConfig) -> None:
        """Apply changed budget profiles."""
        self._config = config

    def budget(self, call: Call, caller: Caller, headers: Headers) -> tuple[Budget, str]:
        """The budget of `call` and its name. Raises `RequestError` 404 for an unknown model, variant or profile."""
        ref = call.ref
        if ref.model != self._config.model.name:
            known = self._config.model.name
            raise _not_found(
                f"model '{ref.model[:200]}' does not exist; this platform serves '{known}'", "model_not_found"
            )
        configured = [variant.name for variant in self._config.variants]
        if ref.variant is not None and ref.variant not in configured:
            raise _not_found(
                f"no variant '{ref.variant[:200]}'; there are: {', '.join(configured)}", "variant_not_found"
            )
        profile = caller.budget if ref.profile is None else ref.profile
        if profile not in self._config.profiles:
            known = ", ".join(self._config.profiles)
            raise _not_found(f"no budget profile '{profile[:200]}'; there are: {known}", "profile_not_found")
        base = self._config.profiles[profile]
        budget = resolve_budget(base, call.budget, headers)
        return budget, profile if budget is base else CUSTOM

    async def answer(self, call: Call, caller: Caller, headers: Headers, id: str, arrival: Arrival, send: Send) -> None:
        """Generate and send the response, or an error, which in a stream is an event.

        Raises:
            RequestError: unknown model, variant or profile.
        """
        budget, profile = self.budget(call, caller, headers)
        trace = self._telemetry.trace(headers, f"{call.endpoint} {call.ref.model}", arrival.received_at)
        request = Request(call, caller, id, arrival, budget, profile, trace)
        error = None
        try:
            await self._answer(request, headers, send)
        except RequestError as raised:
            error = raised
        except asyncio.CancelledError:
            self._telemetry.record_completion(request, cancelled=True)
            raise
        except Exception as unexpected:
            error = internal_error(id, unexpected)
        finally:
            self._grounder.count_sources(request.grounding)
        self._telemetry.record_completion(request, error)
        if error is not None and request.streaming:
            await send({"type": "http.response.body", "body": error_event(error)})
        elif error is not None:
            await reply(send, error.status, error.body(), error.headers.items())

    async def _answer(self, request: Request, headers: Headers, send: Send) -> None:
        call, caller = request.call, request.caller
        options = self._grounder.resolve_options(call, headers)
        if self._config.server.strict_tools:
            call.constrain_tool_calls()
        await self._gatekeeper.admit(caller)
        if options is not None:
            self._admission.check_size(call)
            if options.agent and not calls_function(call.body):  # the agent's first step is a request like this one
                self._admission.decide(call, caller, request.budget, elapsed_s=perf_counter() - request.arrived)
            within_budget = self._admission.budget_check(call, caller, request.budget, request.arrived)
            key = headers.get("authorization", "").partition(" ")[2]
            request.grounding = grounding = await self._grounder.ground(
                call, options, caller.tenant, key, request.budget, request.arrived, within_budget
            )
            if grounding.direct is not None:
                return await _send_synthetic_completion(request, grounding, grounding.direct, send)
        tried = _Tried()
        while True:
            attempt = await self._admit(request, tried)
            try:
                return await self._hedging.run(attempt, partial(self._complete, send, tried))
            except EngineUnreachable as error:
                if tried.faults >= MAX_FAULTS or call.ref.variant in tried.failed:
                    raise _unavailable({*tried.failed, attempt.variant.name}) from error
            except ContextTooLong as error:
                _LOG.info("request %s is too long for variant %s", request.id, attempt.variant.name)
                before = set(tried.failed)
                try:
                    self._rule_out_shorter(attempt.variant, tried.failed, error, call)
                    tried.short |= tried.failed - before
                    tried.moved_from = attempt.variant.name, "context"
                except RequestError:
                    if not await self._shorten(request):
                        raise
                    tried.failed -= tried.short
                    tried.short.clear()

    async def _admit(self, request: Request, tried: _Tried) -> Attempt:
        """The next attempt of `request`, which has its place. Raises `RequestError` when it is refused."""
        started = perf_counter()
        decision, decision_s = await self._admission.admit(request, frozenset(tried.failed | tried.broken))
        decided = perf_counter()
        if tried.moved_from is not None:
            self._metrics.failovers.labels(*tried.moved_from).inc()
            tried.moved_from = None
        self._metrics.decision.observe(decision_s)
        waited_s = decided - started - decision_s if decision.waited else 0.0
        if decision.waited:
            self._metrics.admission_wait.labels(decision.variant.name).observe(waited_s)
        self._telemetry.record_decision(request.profile, decision)
        return Attempt(request, decision, decided, decision_s, waited_s)

    async def _complete(self, send: Send, tried: _Tried, attempt: Attempt, first_token: Callable[[], None]) -> None:
        """Answer the request by `attempt`; a stream that is interrupted is continued. Where it failed is noted in `tried`.

        `first_token` is called before anything is sent to the client.

        Raises:
            EngineUnreachable: before the first token: the request may go elsewhere.
            ContextTooLong: it may go to a variant with a longer context.
            RequestError: the engine refused it.
        """
        stream = self._attempts.response_stream(attempt)
        stream.first_token = first_token
        try:
            await self._attempts.run(attempt, stream, send, tried.broken)
        except StreamInterrupted as error:
            await self._continue(attempt, stream, error, send, tried.broken)
        except EngineUnreachable as error:
            variant, name = attempt.variant, attempt.variant.name
            _LOG.warning("request %s left a replica of variant %s: %s", attempt.request.id, name, error)
            tried.faults += error.sent
            tried.moved_from = name, "replica"
            if error.replica is not None:
                tried.broken.add(error.replica)
                self._engines.on_failure(variant, error.replica)
            if error.replica is None or not self._engines.has_replica(variant, tried.broken):
                tried.failed.add(name)
                tried.moved_from = name, "engine"
            raise

    async def _shorten(self, request: Request) -> bool:
        """Whether sources could be removed from the prompt."""
        if (grounding := request.grounding) is None:
            return False
        return await self._grounder.shorten(
            grounding, request.call, request.caller.tenant, request.budget, request.arrived
        )

    def planned(self, call: Call, caller: Caller, budget: Budget, headers: Headers) -> dict[str, int] | None:
        """The planned number of sources and characters added to the prompt; None for a request without grounding."""
        if (options := self._grounder.resolve_options(call, headers)) is None or options.collection is None:
            return None

        top_k, more_chars = self._grounder.plan(
            options, self._admission.budget_check(call, caller, budget, perf_counter())
        )
        return {"top_k": top_k, "more_chars": more_chars}

    def _rule_out_shorter(self, variant: Variant, failed: set[str], error: ContextTooLong, call: Call) -> None:
        """Exclude all variants whose context is not longer than that of `variant`, or raise 400."""
        longer = {v.name for v in self._variants.values() if v.max_model_len > variant.max_model_len}
        if call.ref.variant is not None or not longer - failed:
            raise context_length_error(error, variant, call) from error
        failed.update(name for name in self._variants if name not in longer)

    async def _continue(
        self, attempt: Attempt, stream: ResponseStream, error: StreamInterrupted, send: Send, broken: set[str]
    ) -> None:
        """Continue a stream that was interrupted at other engines. Raises `RequestError` 500 where that cannot be."""
        request, param, tries = attempt.request, None, 0
        self._on_interruption(attempt, error, broken)
        while tries < MAX_CONTINUATIONS:
            try:
                next_attempt = await self._migration.next_attempt(stream, attempt, broken, error.cause)
                try:
                    return await self._attempts.run(next_attempt, stream, send, broken)
                finally:
                    stream.first_token()  # if none came, the place is free all the same
            except StreamInterrupted as again:
                attempt, error, tries = next_attempt, again, tries + 1
                self._on_interruption(attempt, error, broken)
            except EngineUnreachable as failure:
                _LOG.warning("request %s is not continued there: %s", request.id, failure)
                tries += failure.sent or failure.replica is None or failure.replica in broken
                if failure.replica is not None:
                    broken.add(failure.replica)
            except (NotContinuable, RequestError, ContextTooLong) as obstacle:
                # the message of an engine may quote the request
                why = obstacle if isinstance(obstacle, NotContinuable) else getattr(obstacle, "code", "too long")
                _LOG.warning("request %s is not continued: %s", request.id, why)
                param = None if isinstance(obstacle, ContextTooLong) else obstacle.param  # that is the engine's field
                break
        else:
            _LOG.warning("request %s is not continued: it has been %d times", request.id, MAX_CONTINUATIONS)
        message = f"the stream from variant '{attempt.variant.name}' was interrupted; the response is incomplete"
        raise RequestError(500, message, param=param, code="stream_interrupted")

    def _on_interruption(self, attempt: Attempt, error: StreamInterrupted, broken: set[str]) -> None:
        name = attempt.variant.name
        _LOG.warning("request %s: the stream from variant %s was interrupted: %s", attempt.request.id, name, error)
        if attempt.reached is not None:
            broken.add(attempt.reached)
            self._engines.on_failure(attempt.variant, attempt.reached)


async def _send_synthetic_completion(
    request: Request, grounding: Grounding, answer: SyntheticCompletion, send: Send
) -> None:
    """Send a completion that the gateway produced without a variant."""
    call = request.call
    request.answered = perf_counter()
    e2e_ms = (request.answered - request.arrived) * 1000
    gearbox = synthetic_gearbox_object(grounding, answer, e2e_ms)
    parts = [orjson.dumps(document) for document in documents(answer, call, gearbox, request.id)]
    headers = synthetic_headers(grounding)
    if not call.stream:
        return await reply(send, 200, parts[0], headers)
    events = b"".join(b"data: " + part + b"\n\n" for part in parts) + b"data: [DONE]\n\n"
    await reply(send, 200, events, [*headers, ("cache-control", "no-cache")], EVENT_STREAM)


def _unavailable(failed: Collection[str]) -> RequestError:
    names = ", ".join(f"'{name}'" for name in sorted(failed))
    return RequestError(503, f"no response from {names}", code="engine_unavailable", headers={"retry-after": "5"})


def _not_found(message: str, code: ErrorCode) -> RequestError:
    return RequestError(404, message, param="model", code=code)
