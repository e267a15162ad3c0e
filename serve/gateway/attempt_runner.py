"""One attempt at a request: send it to a replica, relay its response to the client, count what it took."""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter

import aiohttp
import orjson
from opentelemetry.trace import SpanKind

from serve.config.platform import PlatformConfig
from serve.errors import RequestError
from serve.gateway.auth import Gatekeeper
from serve.gateway.continuation import Continuation, inexact
from serve.gateway.engine_client import Engines, EngineUnreachable
from serve.gateway.engine_errors import ContextTooLong, translate_engine_error
from serve.gateway.engine_priority import EnginePriority
from serve.gateway.grounding import Grounder
from serve.gateway.http import EVENT_STREAM, Send, reply, start
from serve.gateway.replica_health import Exchange
from serve.gateway.replica_watch import predicted_reading_s
from serve.gateway.request_admission import RequestAdmission
from serve.gateway.response_metadata import gearbox_object, routing_headers
from serve.gateway.response_stream import InterruptionCause, ResponseStream, StreamInterrupted
from serve.gateway.sse_relay import ABORTED, EngineFault, StreamRelay, count_tokens, splice
from serve.request.call import Call
from serve.request.engine_report import Choice, EngineReport, count_no_output
from serve.request.grounding import Grounding
from serve.request.lifecycle import Attempt, AttemptOutcome
from serve.routing.catalog import Variant
from serve.telemetry.metrics import Metrics
from serve.telemetry.request_telemetry import RequestTelemetry

_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class AttemptRunner:
    """Runs the attempts of one gateway's requests.

    Args:
        keeps_tokens: whether a stream of this variant may be continued from its token ids.
    """

    def __init__(
        self,
        config: PlatformConfig,
        engines: Engines,
        gatekeeper: Gatekeeper,
        metrics: Metrics,
        telemetry: RequestTelemetry,
        admission: RequestAdmission,
        grounder: Grounder,
        keeps_tokens: Callable[[Variant], bool],
    ) -> None:
        self._model = config.model.name
        self._priority = EnginePriority(config)
        self._engines = engines
        self._gatekeeper = gatekeeper
        self._metrics = metrics
        self._telemetry = telemetry
        self._admission = admission
        self._grounder = grounder
        self._keeps_tokens = keeps_tokens

    async def run(self, attempt: Attempt, stream: ResponseStream, send: Send, broken: Collection[str]) -> None:
        """Answer by `attempt`, at a replica that is not in `broken` (base URLs), and send it to the client.

        Raises:
            EngineUnreachable: before the first token: the request may go elsewhere.
            StreamInterrupted: after it: the stream may be continued elsewhere.
            ContextTooLong: it may go to a variant with a longer context.
            RequestError: the engine refused it.
        """
        variant, call, request = attempt.variant, attempt.call, attempt.request
        model, priority = self._model, self._priority.of(attempt)
        if stream.continues:
            path = _PATHS["completions"]
            payload = stream.continuation.payload(model, variant.max_model_len, priority)
            attempt.prefill_tokens, output_tokens = stream.continuation.total_tokens, 0
        else:
            path, payload = (
                _PATHS[call.endpoint],
                call.payload(model, priority, token_ids=stream.relay.continuation is not None),
            )
            attempt.prefill_tokens = attempt.decision.chosen.uncached_tokens
            output_tokens = attempt.decision.features.total_output_tokens
        request.attempts.append(attempt)
        in_flight = self._metrics.in_flight.labels(variant.name)
        attempt.dispatched = perf_counter()
        if len(request.attempts) == 1:
            self._metrics.overhead.observe(attempt.overhead_s)
        trace_headers: Mapping[str, str] = {}
        if request.trace is not None:
            attempt.span = request.trace.open("engine", attempt.dispatched, kind=SpanKind.CLIENT)
            trace_headers = request.trace.headers(attempt.span)
        features, replica = attempt.decision.features, attempt.replica
        variant.live.on_dispatch(attempt.prefill_tokens, call.sequences, output_tokens, replica)
        expected = attempt.decision.chosen.prediction.expected
        in_flight.inc()
        predicted: asyncio.TimerHandle | None = None
        self._admission.start_waiting()
        try:  # the counters are decremented in `finally`
            if not call.stream:  # there is no first token to observe: assume the predicted TTFT
                predicted = asyncio.get_running_loop().call_later(expected.ttft_ms / 1000, attempt.on_first_token)
            # what the engine has cached is an estimate, which must not make it seem to have stalled
            reading_s = predicted_reading_s(
                variant, attempt.decision.chosen.load, max(attempt.prefill_tokens, features.prompt_tokens)
            )
            async with self._engines.post(
                variant, path, payload, request.id, trace_headers, broken, replica, reading_s, attempt.on_choice
            ) as (response, exchange):
                if response.status >= 400:
                    raise translate_engine_error(response.status, await _read(response, variant), call)
                if call.stream:
                    attempt.outcome = await self._stream(attempt, stream, response, exchange, send)
                else:
                    body = await _read(response, variant)
                    if ABORTED in body:
                        raise EngineUnreachable(f"variant '{variant.name}' has aborted the request")
                    exchange.waiting_since = math.inf
                    stream.first_token()
                    await self._whole(attempt, body, send)
                    attempt.outcome = "ok"
        except EngineUnreachable:
            attempt.outcome = "engine_error"
            raise
        except StreamInterrupted:
            attempt.outcome = "interrupted"
            raise
        except (RequestError, ContextTooLong):
            attempt.outcome = "client_error"
            raise
        finally:
            if predicted is not None:
                predicted.cancel()  # it would hold the request until then
            attempt.on_first_token()
            variant.live.on_complete(call.sequences, replica)
            in_flight.dec()
            self._admission.start_waiting()
            if attempt.first_token_at:
                variant.live.remember_prefix(features.blocks, attempt.reached or replica)
            if attempt.outcome == "ok":
                self._admission.observe(attempt)
            self._telemetry.record_attempt(attempt)
            if attempt.report.total_tokens:
                await self._gatekeeper.charge(attempt.request.caller, attempt.report.total_tokens)

    async def _whole(self, attempt: Attempt, body: bytes, send: Send) -> None:
        document = orjson.loads(body)
        if attempt.call.echoes_only:
            count_no_output(document)
            body = orjson.dumps(document)
        attempt.report = EngineReport.of(document)
        attempt.last_token_at = perf_counter()
        if attempt.report.decode_s is not None:
            attempt.first_token_at = attempt.last_token_at - attempt.report.decode_s
        elif attempt.report.completion_tokens == 1:
            attempt.first_token_at = attempt.last_token_at
        request = attempt.request
        if self._telemetry.captures_content:
            choice = document["choices"][0]
            attempt.text = choice["message"].get("content") if "message" in choice else choice.get("text")
        if request.grounding is not None:
            choices = Choice.all_of(document)
            try:
                appended = await self._verify(attempt, request.grounding, choices)
            except asyncio.CancelledError:
                attempt.report = EngineReport()  # nobody has the answer: it is not charged
                raise
            if appended:
                document["choices"][0]["message"]["content"] = choices[0].text + appended
                body = orjson.dumps(document)
        if (rename := self._rename(request.call)) is not None:
            body = body.replace(*rename, 1)
        await reply(send, 200, splice(body, gearbox_object(attempt)), routing_headers(attempt))

    def response_stream(self, attempt: Attempt) -> ResponseStream:
        """The stream of an answer of which the client has nothing yet."""
        request, call = attempt.request, attempt.call
        obstacle = inexact(call) if call.stream else "stream"
        relay = StreamRelay(
            call.wants_usage,
            self._rename(call),
            collects=request.grounding is not None or self._telemetry.captures_content,
            echoes_only=call.echoes_only,
        )
        if obstacle is None and self._keeps_tokens(attempt.variant):
            relay.continuation = Continuation(call)
        return ResponseStream(relay, obstacle)

    async def _stream(
        self,
        attempt: Attempt,
        stream: ResponseStream,
        response: aiohttp.ClientResponse,
        exchange: Exchange,
        send: Send,
    ) -> AttemptOutcome:
        """Relay a stream; returns the outcome. The response starts with the first token; until then it may fail over.

        Raises `StreamInterrupted` when the engine fails after that.
        """
        request, relay, replica = attempt.request, stream.relay, exchange.replica
        fault: EngineFault | None = None
        broke: Exception | None = None
        chunk = data = b""
        try:
            while not chunk and not relay.done and (data := await response.content.readany()):
                await stream.checked()
                chunk = stream.feed(data)
        except EngineFault as error:
            if not (stream.continues and (error.before or relay.ended)):
                raise translate_engine_error(error.status, error.body, request.call) from error
            chunk, fault = error.before, error
        except (TimeoutError, aiohttp.ClientError) as error:
            broke = error
        chunk = chunk or stream.complete()
        if not chunk and not relay.done:
            problem = "the stream ended" if broke is None else type(broke).__name__
            raise EngineUnreachable(f"{problem} before the first token") from broke
        attempt.first_token_at = attempt.last_token_at = perf_counter()
        exchange.on_first_token(attempt.first_token_at)
        exchange.waiting_since = math.inf
        attempt.on_first_token()
        stream.first_token()
        # a chunk with nothing but roles: the tokens that follow are the first ones, and no step was before them
        ahead = count_tokens(data) if data.count(b'"role":"assistant"') == count_tokens(data) else 0
        if not request.streaming:
            request.streaming = True
            await start(send, 200, EVENT_STREAM, [*routing_headers(attempt), ("cache-control", "no-cache")])
        cause: InterruptionCause = "connection"
        try:
            while True:
                if chunk:
                    sending = perf_counter()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    attempt.on_sent(sending)
                exchange.waiting_since = attempt.last_token_at
                if fault is not None:
                    cause = "engine_error"
                    break
                if relay.done or not (data := await response.content.readany()):
                    break
                try:
                    chunk = stream.feed(data)
                except EngineFault as error:
                    chunk, fault = error.before, error
                exchange.waiting_since = math.inf
                if (sent_at := attempt.on_tokens(count_tokens(data, relay.done) - ahead)) is not None:
                    replica.active_at = sent_at
                ahead = 0
        except (TimeoutError, aiohttp.ClientError) as error:
            cause = "stalled" if exchange.stalled or isinstance(error, TimeoutError) else "connection"
        finally:
            exchange.waiting_since = math.inf
            attempt.report = relay.report
            attempt.text = relay.text if self._telemetry.captures_content else None
        if rest := stream.complete():
            await send({"type": "http.response.body", "body": rest, "more_body": True})
        if not relay.done:
            raise StreamInterrupted(cause)
        attempt.report = relay.report
        appended = ""
        if request.grounding is not None:
            choices = [choice for _, choice in sorted(relay.choices.items())]
            appended = await self._verify(attempt, request.grounding, choices)
        end = relay.finish(gearbox_object(attempt), appended)
        request.streaming = False
        await send({"type": "http.response.body", "body": end})
        return "ok"

    def _rename(self, call: Call) -> tuple[bytes, bytes] | None:
        """The JSON member `model` as engines write it and as the client requested it; None when they are equal."""
        if call.model == (served := self._model):
            return None
        return b'"model":' + orjson.dumps(served), b'"model":' + orjson.dumps(call.model)

    async def _verify(self, attempt: Attempt, grounding: Grounding, choices: Sequence[Choice]) -> str:
        """Verify the answer against its sources; returns the text to append."""
        request, written = attempt.request, attempt.report.completion_tokens
        return await self._grounder.check(grounding, request.call, choices, written, request.budget, request.arrived)


async def _read(response: aiohttp.ClientResponse, variant: Variant) -> bytes:
    try:
        return await response.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise EngineUnreachable(f"{type(error).__name__} while reading from variant '{variant.name}'") from error
