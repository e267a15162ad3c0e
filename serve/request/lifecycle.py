"""The lifecycle of a request: arrival, attempts at variants, and outcome."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, NamedTuple

from opentelemetry.trace import Span

from serve.budget import Budget
from serve.request.call import Call
from serve.request.caller import Caller
from serve.request.engine_report import EngineReport
from serve.request.grounding import Grounding
from serve.request.trace import Trace
from serve.routing.catalog import Variant
from serve.routing.prediction import Latency
from serve.routing.router import Decision

AttemptOutcome = Literal["ok", "client_error", "engine_error", "cancelled", "interrupted"]
_BLOCKED = 0.5  # share of the time between two chunks that is the client's if it is spent on sending
CUSTOM = "custom"  # profile of requests that set limits themselves


class Arrival(NamedTuple):
    """Timestamps of a request's arrival, perf_counter seconds: headers received, authenticated, body read."""

    received_at: float
    authenticated: float
    read: float


@dataclass(slots=True)
class Request:
    """A request: call, caller, budget, and its attempts."""

    call: Call
    caller: Caller
    id: str
    arrival: Arrival
    budget: Budget
    profile: str  # name of the budget profile, or `CUSTOM`
    trace: Trace | None = None
    grounding: Grounding | None = None
    migrations: list[dict[str, object]] = field(default_factory=list)  # public: where its stream went on
    attempts: list["Attempt"] = field(default_factory=list)
    streaming: bool = False  # whether the client has the head of a stream, and not its end
    answered: float = 0.0  # time of the last byte of an answer without a variant, perf_counter seconds

    @property
    def arrived(self) -> float:
        """Time the body was read, perf_counter seconds; the budget counts from here."""
        return self.arrival.read

    @property
    def searched_s(self) -> float:
        """Duration of the document search."""
        return self.grounding.ms / 1000 if self.grounding else 0.0

    @property
    def violations(self) -> list[str]:
        """The budget limits that the request violated: ttft, tpot, e2e, cost, quality."""
        if not self.attempts:
            e2e_ms = (self.answered - self.arrived) * 1000
            direct = self.grounding.direct if self.grounding else None
            return _over(self.budget, e2e_ms, None, e2e_ms, direct.cost_usd if direct else 0.0, None)
        last = self.attempts[-1]
        return _over(self.budget, last.ttft_ms, last.tpot_ms, last.e2e_ms, last.cost_usd, last.quality)


def _over(
    budget: Budget, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float, cost_usd: float, quality: float | None
) -> list[str]:
    most: Sequence[tuple[str, float | None, float | None]] = (
        ("ttft", ttft_ms, budget.ttft_ms),
        ("tpot", tpot_ms, budget.tpot_ms),
        ("e2e", e2e_ms, budget.e2e_ms),
        ("cost", cost_usd, budget.max_cost),
    )
    over = [kind for kind, value, limit in most if value is not None and limit is not None and value > limit]
    if quality is not None and budget.min_quality is not None and quality < budget.min_quality:
        over.append("quality")
    return over


@dataclass(slots=True)
class Attempt:
    """One attempt at a variant: the decision, timestamps (perf_counter seconds) and the engine's report."""

    request: Request
    decision: Decision
    decided: float = 0.0
    decision_s: float = 0.0
    waited_s: float = 0.0  # in the gateway, for a place
    dispatched: float = 0.0
    reached: str | None = None  # base URL of the replica that it was sent to
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    outcome: AttemptOutcome = "cancelled"
    report: EngineReport = field(default_factory=EngineReport)
    span: Span | None = None  # span of the engine call
    text: str | None = None  # text of the answer, if it is logged
    continues: "Attempt | None" = None  # the attempt that wrote the beginning of the answer, if another one did
    resume_by: float = 0.0  # when it should then go on
    prefill_tokens: int = 0  # prompt tokens that count as pending prefill
    prefill_pending: bool = True  # whether they do
    sent_s: float = 0.0  # that sending to the client took
    _streamed_at: float = 0.0  # last time that tokens arrived from the engine
    _sending_s: float = 0.0  # that sending to the client took since then

    @property
    def call(self) -> Call:
        """The parsed request."""
        return self.request.call

    @property
    def variant(self) -> Variant:
        """The variant of this attempt."""
        return self.decision.variant

    @property
    def replica(self) -> str:
        """Base URL of the replica that it was decided for; empty where none was known."""
        return self.decision.chosen.load.replica

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token of the answer, from the request's arrival."""
        if self.continues is not None:
            return self.continues.ttft_ms
        return (self.first_token_at - self.request.arrived) * 1000 if self.first_token_at else None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token of the answer after the first, averaged over sequences."""
        steps = self.report.completion_tokens / self.call.sequences - 1
        first = (self.continues or self).first_token_at
        return (self.last_token_at - first) * 1000 / steps if first and steps > 0 else None

    @property
    def e2e_ms(self) -> float:
        """End-to-end time, from the request's arrival to the last token."""
        return (self.last_token_at - self.request.arrived) * 1000

    @property
    def quality(self) -> float:
        """Quality of the answer: the lowest of the variants that generated it."""
        before = [one for one in self.request.attempts if one.first_token_at] if self.continues is not None else []
        return min(one.variant.quality.quality for one in (self, *before))

    @property
    def latency(self) -> Latency | None:
        """Measured latency of the variant, from the dispatch; None if it wrote only a part, or the engine reported too little."""
        if self.continues is not None or not self.report.completion_tokens or not self.first_token_at:
            return None
        return Latency(
            (self.first_token_at - self.dispatched) * 1000,
            self.tpot_ms or 0.0,
            (self.last_token_at - self.dispatched) * 1000,
        )

    @property
    def overhead_s(self) -> float:
        """Gateway overhead: from the request's arrival to its dispatch, without the document search and the wait for a place."""
        return self.dispatched - self.request.arrived - self.request.searched_s - self.waited_s

    @property
    def cost_usd(self) -> float:
        """Cost of the prompt and output tokens at the deployment's price."""
        return self.variant.cost_usd(self.report.prompt_tokens, self.report.completion_tokens)

    def on_choice(self, replica: str) -> None:
        """Note the replica (base URL) that it is sent to."""
        self.reached = replica

    def on_first_token(self) -> None:
        """Count the prompt as prefilled, once: at the first token or at the end of the attempt."""
        if self.prefill_pending:
            self.prefill_pending = False
            self._streamed_at = perf_counter()
            self.variant.live.on_first_token(self.prefill_tokens, self.replica)

    def on_tokens(self, events: int) -> float | None:
        """Count events of the engine's stream that arrived now, one for each token of a sequence. Returns when the engine sent them.

        Those that arrived while a slow client blocked the gateway's reads say nothing about the engine's speed, nor when they were
        sent: the time is None.
        """
        now = perf_counter()
        since_s, self._streamed_at = now - self._streamed_at, now
        sent_at = None
        if self._sending_s <= _BLOCKED * since_s:
            self.variant.live.on_tokens(events / self.call.sequences, since_s)
            sent_at = now
        self._sending_s = 0.0
        return sent_at

    def on_sent(self, sending: float) -> None:
        """Note that tokens were sent to the client, from `sending` on until now."""
        self.last_token_at = perf_counter()
        self._sending_s += self.last_token_at - sending
        self.sent_s += self.last_token_at - sending

    @property
    def client_blocked(self) -> bool:
        """Whether the client read so slowly that the measured times are its own, not the engine's."""
        return self.sent_s > _BLOCKED * (self.last_token_at - self.first_token_at)
