"""The way of one generation request: budget, decision, engine, answer, account. Each step goes forward only.

A request whose variant breaks before the first token re-enters at the decision, once, with what is left of its budget.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import orjson

from serve.auth import Caller, Gatekeeper
from serve.budget import Budget, resolve_budget
from serve.catalog import Variant
from serve.config import PlatformConfig
from serve.engines import Engines, EngineUnreachable
from serve.errors import RequestError
from serve.grounding import Fits, Grounder, Grounding, direct_answer
from serve.http import EVENT_STREAM, Headers, Send, reply, start
from serve.metrics import Metrics
from serve.prediction import Features, Latency, OutputLengths
from serve.protocol import Call
from serve.relay import EngineFault, StreamRelay, error_event, splice
from serve.relay import EngineReport as Report
from serve.router import CONFIDENCE, Decision, Router, too_long

MAX_ATTEMPTS = 2
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_LOG = logging.getLogger("gearbox.gateway")


class ContextTooLong(Exception):
    """The engine counted more tokens than the variant's context holds."""


@dataclass(slots=True)
class Attempt:
    """A request at one variant: what was decided, when what happened (perf_counter seconds), what it took."""

    call: Call
    caller: Caller
    request_id: str
    budget: Budget
    decision: Decision
    arrived: float
    number: int
    grounding: Grounding | None = None
    dispatched: float = 0.0
    first: float = 0.0
    last: float = 0.0
    report: Report = field(default_factory=Report)
    unread: bool = True  # its prompt counts as not yet read by the engine

    @property
    def variant(self) -> Variant:
        """The variant this attempt is at."""
        return self.decision.variant

    def read(self) -> None:
        """The engine has read the prompt, or nobody waits for that any more."""
        if self.unread:
            self.unread = False
            self.variant.live.read(self.decision.chosen.unread_tokens)


class Generation:
    """Answers chat-completions and completions requests."""

    def __init__(
        self,
        config: PlatformConfig,
        variants: Mapping[str, Variant],
        engines: Engines,
        gatekeeper: Gatekeeper,
        metrics: Metrics,
        router: Router,
        grounder: Grounder,
    ) -> None:
        self._config = config
        self._grounder = grounder
        self._router = router
        self._lengths = OutputLengths()
        self._variants = variants
        self._engines = engines
        self._gatekeeper = gatekeeper
        self._metrics = metrics

    def reconfigure(self, config: PlatformConfig, router: Router) -> None:
        """Take other budget profiles and another router."""
        self._config, self._router = config, router

    def budget(self, call: Call, caller: Caller, headers: Headers) -> Budget:
        """What `call` may spend. Raises `RequestError` 404 for a model, variant or profile there is not."""
        ref = call.ref
        if ref.model != self._config.model.name:
            known = self._config.model.name
            raise _not_found(f"model '{ref.model}' does not exist; this platform serves '{known}'", "model_not_found")
        configured = [variant.name for variant in self._config.variants]
        if ref.variant is not None and ref.variant not in configured:
            raise _not_found(f"no variant '{ref.variant}'; there are: {', '.join(configured)}", "variant_not_found")
        profile = caller.budget if ref.profile is None else ref.profile
        if profile not in self._config.profiles:
            known = ", ".join(self._config.profiles)
            raise _not_found(f"no budget profile '{profile}'; there are: {known}", "profile_not_found")
        return resolve_budget(self._config.profiles[profile], call.budget, headers)

    def decide(
        self, call: Call, caller: Caller, budget: Budget, failed: Collection[str] = (), more_chars: int = 0
    ) -> Decision:
        """Where `call` would go now, its prompt `more_chars` longer. Raises `RequestError` when nowhere."""
        began = perf_counter()
        known = next(iter(self._variants.values()), None)
        chars_per_token = known.card.chars_per_token if known else 4.0  # no variant is up: nowhere to go anyway
        prompt_tokens = call.prompt_tokens + round((call.prompt_chars + more_chars) / chars_per_token) + 1
        expected = self._lengths.expect(caller.tenant, call.ref.profile or caller.budget, call.max_output_tokens)
        features = Features(prompt_tokens, expected, call.blocks)
        variants = self._variants.values()
        decision = self._router.decide(variants, budget, features, pinned=call.ref.variant, failed=failed)
        self._metrics.decision.observe(perf_counter() - began)
        return decision

    async def answer(
        self, call: Call, caller: Caller, headers: Headers, request_id: str, arrived: float, send: Send
    ) -> None:
        """Generate and send the answer. Raises `RequestError` for what goes wrong before its first byte."""
        budget = self.budget(call, caller, headers)
        wanted = self._grounder.wanted(call, headers)
        await self._gatekeeper.admit(caller)
        grounding = None
        if wanted is not None:
            fits = self._fits(call, caller, budget, arrived)
            key = headers.get("authorization", "").partition(" ")[2] or "none"
            grounding = await self._grounder.ground(call, wanted, caller.tenant, key, budget, arrived, fits)
            if grounding.answer is not None:
                return await _answer_directly(call, grounding, grounding.answer, request_id, arrived, send)
        failed: set[str] = set()
        faults = number = 0
        moved_from: str | None = None
        while True:
            number += 1
            decision = self.decide(call, caller, _remaining(budget, perf_counter() - arrived), failed)
            if moved_from is not None:
                self._metrics.failovers.labels(moved_from).inc()
                moved_from = None
            attempt = Attempt(call, caller, request_id, budget, decision, arrived, number, grounding)
            name = decision.variant.name
            try:
                return await self._attempt(attempt, send)
            except EngineUnreachable as error:
                _LOG.warning("request %s left variant %s: %s", request_id, name, error)
                failed.add(name)
                faults += 1
                if call.ref.variant is not None or faults == MAX_ATTEMPTS:
                    raise _unavailable(failed) from error
                moved_from = name
            except ContextTooLong as error:
                _LOG.info("request %s is too long for variant %s", request_id, name)
                self._rule_out_shorter(decision.variant, failed, str(error), pinned=call.ref.variant is not None)

    def planned(self, call: Call, caller: Caller, budget: Budget, headers: Headers) -> dict[str, int] | None:
        """How many sources a request would get and how much longer its prompt would be; None: it asks for none."""
        if (wanted := self._grounder.wanted(call, headers)) is None or wanted.collection is None:
            return None

        top_k, more_chars = self._grounder.plan(wanted, self._fits(call, caller, budget, perf_counter()))
        return {"top_k": top_k, "more_chars": more_chars}

    def _fits(self, call: Call, caller: Caller, budget: Budget, arrived: float) -> Fits:
        """Tells whether some variant keeps `budget` with a longer prompt, later.

        Where none does even without, the sources are not to blame: then it tells whether the prompt fits a context.
        """

        def miss(more_chars: int, more_s: float) -> str | None:
            left = _remaining(budget, perf_counter() - arrived + more_s)
            return self.decide(call, caller, left, more_chars=more_chars).chosen.why

        def fits(more_chars: int, more_s: float) -> bool:
            try:
                return miss(more_chars, more_s) is None or missed
            except RequestError:
                return False

        try:
            missed = miss(0, 0) is not None
        except RequestError:
            missed = False
        return fits

    def _rule_out_shorter(self, variant: Variant, failed: set[str], message: str, *, pinned: bool) -> None:
        """After `variant` was too short: leave only variants with a longer context, or raise 413."""
        longer = {v.name for v in self._variants.values() if v.max_model_len > variant.max_model_len}
        if pinned or not longer:
            raise too_long(message, max(v.max_model_len for v in self._variants.values()))
        failed.update(name for name in self._variants if name not in longer)

    async def _attempt(self, attempt: Attempt, send: Send) -> None:
        variant, call = attempt.variant, attempt.call
        payload = call.payload(self._config.model.name)
        in_flight = self._metrics.in_flight.labels(variant.name)
        variant.live.began(attempt.decision.chosen.unread_tokens)
        in_flight.inc()
        attempt.dispatched = perf_counter()
        self._metrics.overhead.observe(attempt.dispatched - attempt.arrived - _searched_ms(attempt) / 1000)
        outcome = "cancelled"
        if not call.stream:  # nothing tells when the engine has read the prompt
            expected_s = attempt.decision.chosen.prediction.expected.ttft_ms / 1000
            asyncio.get_running_loop().call_later(expected_s, attempt.read)
        try:
            async with self._engines.post(variant, _PATHS[call.endpoint], payload, attempt.request_id) as response:
                if response.status >= 400:
                    raise _refusal(response.status, await _read(response, variant))
                if call.stream:
                    outcome = await self._stream(attempt, response, send)
                else:
                    await self._whole(attempt, await _read(response, variant), send)
                    outcome = "ok"
        except EngineUnreachable:
            outcome = "engine_error"
            raise
        except (RequestError, ContextTooLong):
            outcome = "client_error"
            raise
        finally:
            attempt.read()
            variant.live.ended()
            in_flight.dec()
            await self._account(attempt, outcome)

    async def _whole(self, attempt: Attempt, body: bytes, send: Send) -> None:
        document = orjson.loads(body)
        attempt.report = Report.of(document)
        attempt.last = perf_counter()
        if attempt.report.decode_s is not None:
            attempt.first = attempt.last - attempt.report.decode_s
        elif attempt.report.completion_tokens == 1:
            attempt.first = attempt.last
        if attempt.grounding is not None:
            message = document["choices"][0]["message"]
            text = message.get("content") or ""
            if more := await self._grounder.check(attempt.grounding, text, attempt.budget, attempt.arrived):
                message["content"] = text + more
                body = orjson.dumps(document)
        await reply(send, 200, splice(body, _gearbox(attempt)), _routing_headers(attempt))

    async def _stream(self, attempt: Attempt, response: aiohttp.ClientResponse, send: Send) -> str:
        """Relay a stream; returns the outcome. The head goes out with the first token, until then it may fail over."""
        relay = StreamRelay(attempt.call.wants_usage, collects=attempt.grounding is not None)
        try:
            chunk = b""
            while not chunk and (data := await response.content.readany()):
                chunk = relay.feed(data)
        except EngineFault as fault:
            raise _refusal(fault.status, fault.body) from fault
        except (TimeoutError, aiohttp.ClientError) as error:
            raise EngineUnreachable(f"{type(error).__name__} before the first token") from error
        if not chunk and not relay.done:
            raise EngineUnreachable("the stream ended before the first token")
        attempt.first = attempt.last = perf_counter()
        attempt.read()
        await start(send, 200, EVENT_STREAM, [*_routing_headers(attempt), ("cache-control", "no-cache")])
        try:
            while True:
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    attempt.last = perf_counter()
                if relay.done or not (data := await response.content.readany()):
                    break
                chunk = relay.feed(data)
        except (TimeoutError, EngineFault, aiohttp.ClientError) as error:
            _LOG.warning(
                "request %s broke off at variant %s: %s", attempt.request_id, attempt.variant.name, type(error).__name__
            )
        finally:
            attempt.report = relay.report
        if not relay.done:
            message = f"the answer broke off at variant '{attempt.variant.name}'; what was sent so far is incomplete"
            told = {"message": message, "type": "server_error", "param": None, "code": "stream_interrupted"}
            await send({"type": "http.response.body", "body": error_event(told)})
            return "interrupted"
        more = ""
        if attempt.grounding is not None:
            more = await self._grounder.check(attempt.grounding, relay.text, attempt.budget, attempt.arrived)
        await send({"type": "http.response.body", "body": relay.finish(_gearbox(attempt), more)})
        return "ok"

    def _learn(self, attempt: Attempt) -> None:
        """Let the predictions learn from an answer that came whole."""
        call, tokens = attempt.call, attempt.report.completion_tokens
        if not tokens or not attempt.first:
            return
        self._lengths.observe(attempt.caller.tenant, call.ref.profile or attempt.caller.budget, tokens)
        took = Latency(
            (attempt.first - attempt.dispatched) * 1000,
            (attempt.last - attempt.first) * 1000 / (tokens - 1) if tokens > 1 else 0.0,
            (attempt.last - attempt.dispatched) * 1000,
        )
        prediction, name = attempt.decision.chosen.prediction, attempt.variant.name
        tail = prediction.tail(CONFIDENCE)
        for what in ("ttft", "tpot", "e2e"):
            field_name = f"{what}_ms"
            if real := getattr(took, field_name):
                error = abs(getattr(prediction.expected, field_name) / real - 1)
                self._metrics.prediction_error.labels(name, what).observe(error)
                held = real <= getattr(tail, field_name)
                self._metrics.predictions_held.labels(name, what, "yes").inc(held)
                self._metrics.predictions_held.labels(name, what, "no").inc(not held)
        prediction.observe(took.ttft_ms, took.tpot_ms or None, took.e2e_ms)

    async def _account(self, attempt: Attempt, outcome: str) -> None:
        metrics, report, name = self._metrics, attempt.report, attempt.variant.name
        metrics.requests.labels(name, attempt.decision.reason, outcome).inc()
        if report.queue_s is not None:
            metrics.queue.labels(name).observe(report.queue_s)
        if attempt.first:
            attempt.variant.live.remember(attempt.decision.features)
            metrics.ttft.labels(name).observe(attempt.first - attempt.arrived)
        if outcome == "ok":
            self._learn(attempt)
            metrics.e2e.labels(name).observe(attempt.last - attempt.arrived)
            if report.completion_tokens > 1 and attempt.first:
                metrics.tpot.labels(name).observe((attempt.last - attempt.first) / (report.completion_tokens - 1))
        if not report.total_tokens:
            return
        metrics.tokens.labels(name, "input").inc(report.prompt_tokens)
        metrics.tokens.labels(name, "output").inc(report.completion_tokens)
        metrics.cost.labels(attempt.caller.tenant, name).inc(_cost_usd(attempt))
        await self._gatekeeper.charge(attempt.caller, report.total_tokens)


async def _answer_directly(
    call: Call, grounding: Grounding, text: str, request_id: str, arrived: float, send: Send
) -> None:
    """Send an answer that is known before a variant is asked."""
    e2e_ms = round((perf_counter() - arrived) * 1000, 2)
    gearbox = {
        "variant": None, "reason": grounding.reason, "quality": None, "missed": None, "ttft_ms": e2e_ms, "tpot_ms": None,
        "e2e_ms": e2e_ms, "cost_usd": 0.0, "attempts": 0, "predicted": {}, **grounding.public(),
    }  # fmt: skip
    documents = [orjson.dumps(document) for document in direct_answer(call, text, grounding.usage, gearbox, request_id)]
    headers = [("x-gearbox-variant", "none"), ("x-gearbox-reason", grounding.reason), *_grounding_headers(grounding)]
    if not call.stream:
        return await reply(send, 200, documents[0], headers)
    events = b"".join(b"data: " + document + b"\n\n" for document in documents) + b"data: [DONE]\n\n"
    await reply(send, 200, events, [*headers, ("cache-control", "no-cache")], EVENT_STREAM)


def _grounding_headers(grounding: Grounding | None) -> list[tuple[str, str]]:
    return [("x-gearbox-retrieval", grounding.outcome)] if grounding else []


def _cost_usd(attempt: Attempt) -> float:
    return attempt.variant.cost_usd(attempt.report.prompt_tokens, attempt.report.completion_tokens)


def _routing_headers(attempt: Attempt) -> list[tuple[str, str]]:
    decision = attempt.decision
    return [
        ("x-gearbox-variant", decision.variant.name),
        ("x-gearbox-reason", decision.reason),
        ("x-gearbox-predicted-ttft-ms", f"{decision.chosen.prediction.expected.ttft_ms:.1f}"),
        ("x-gearbox-predicted-e2e-ms", f"{decision.chosen.prediction.expected.e2e_ms:.1f}"),
        ("x-gearbox-quality", f"{decision.variant.quality.quality:.4f}"),
        ("x-gearbox-overhead-ms", f"{(attempt.dispatched - attempt.arrived) * 1000 - _searched_ms(attempt):.3f}"),
        *_grounding_headers(attempt.grounding),
    ]


def _searched_ms(attempt: Attempt) -> float:
    return attempt.grounding.ms if attempt.grounding else 0.0


def _gearbox(attempt: Attempt) -> dict[str, object]:
    """The `gearbox` object: what was chosen and what really happened, times in ms."""
    report = attempt.report
    steps = report.completion_tokens - 1
    return {
        "variant": attempt.variant.name,
        "reason": attempt.decision.reason,
        "quality": attempt.variant.quality.quality,
        "missed": attempt.decision.chosen.why,
        "ttft_ms": round((attempt.first - attempt.arrived) * 1000, 2) if attempt.first else None,
        "tpot_ms": round((attempt.last - attempt.first) * 1000 / steps, 2) if attempt.first and steps > 0 else None,
        "e2e_ms": round((attempt.last - attempt.arrived) * 1000, 2),
        "cost_usd": _cost_usd(attempt),
        "attempts": attempt.number,
        "predicted": attempt.decision.chosen.predictions(),
        **(attempt.grounding.public() if attempt.grounding else {}),
    }


async def _read(response: aiohttp.ClientResponse, variant: Variant) -> bytes:
    try:
        return await response.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise EngineUnreachable(f"{type(error).__name__} while reading from variant '{variant.name}'") from error


def _remaining(budget: Budget, elapsed_s: float) -> Budget:
    """`budget` less the time that has passed; at least 1 ms of each limit is left so that it stays comparable."""
    if elapsed_s < 0.001 or (budget.ttft_ms is None and budget.e2e_ms is None):
        return budget
    left = {
        name: max(limit - elapsed_s * 1000, 1.0)
        for name, limit in (("ttft_ms", budget.ttft_ms), ("e2e_ms", budget.e2e_ms))
        if limit is not None
    }
    return budget.model_copy(update=left)


def _refusal(status: int, body: bytes) -> Exception:
    """The engine's own error in the documented shape; `ContextTooLong` when another variant might do."""
    if status >= 500:
        return EngineUnreachable(f"the engine reported an error ({status})")
    try:
        error = orjson.loads(body)
    except orjson.JSONDecodeError:
        error = None
    if isinstance(error, dict):
        error = error.get("error", error)
    if not isinstance(error, dict):
        error = {"message": error}
    message, param = error.get("message"), error.get("param")
    message = message if isinstance(message, str) and message else "the engine refused the request"
    if "maximum context length" in message or "maximum model length" in message:
        return ContextTooLong(message)
    return RequestError(status, message, param=param if isinstance(param, str) else None, code="invalid_request")


def _unavailable(failed: Collection[str]) -> RequestError:
    names = ", ".join(f"'{name}'" for name in sorted(failed))
    return RequestError(
        503, f"no answer could be had from {names}", code="engine_unavailable", headers={"retry-after": "5"}
    )


def _not_found(message: str, code: str) -> RequestError:
    return RequestError(404, message, param="model", code=code)
