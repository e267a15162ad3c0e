"""One request as the gateway follows it: what was asked, each attempt at a variant, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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

Outcome = Literal["ok", "client_error", "engine_error", "cancelled", "interrupted"]
CUSTOM = "custom"  # profile of requests that name limits of their own


class Arrival(NamedTuple):
    """When a request came (perf_counter seconds): its head, its key found good, its last byte."""

    head: float
    authenticated: float
    read: float


@dataclass(slots=True)
class Request:
    """What was asked by whom and may be spent on it."""

    call: Call
    caller: Caller
    id: str
    arrival: Arrival
    budget: Budget
    profile: str  # its budget's name, or `CUSTOM`
    trace: Trace | None = None
    grounding: Grounding | None = None
    attempts: list["Attempt"] = field(default_factory=list)
    answered: float = 0.0  # when the last byte of an answer without a variant was sent (perf_counter seconds)

    @property
    def arrived(self) -> float:
        """When its last byte was read, perf_counter seconds: its budget counts from here."""
        return self.arrival.read

    @property
    def searched_s(self) -> float:
        """How long documents were searched for it."""
        return self.grounding.ms / 1000 if self.grounding else 0.0

    @property
    def violations(self) -> list[str]:
        """The limits that its answer did not keep: ttft, tpot, e2e, cost, quality."""
        if not self.attempts:
            e2e_ms = (self.answered - self.arrived) * 1000
            direct = self.grounding.direct if self.grounding else None
            return _over(self.budget, e2e_ms, None, e2e_ms, direct.cost_usd if direct else 0.0, None)
        last = self.attempts[-1]
        return _over(self.budget, last.ttft_ms, last.tpot_ms, last.e2e_ms, last.cost_usd, last.variant.quality.quality)


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
    """A request at one variant: what was decided, when what happened (perf_counter seconds), what it took."""

    request: Request
    decision: Decision
    decided: float = 0.0
    decision_s: float = 0.0
    dispatched: float = 0.0
    first: float = 0.0
    last: float = 0.0
    outcome: Outcome = "cancelled"
    report: EngineReport = field(default_factory=EngineReport)
    span: Span | None = None  # of the engine's part
    text: str | None = None  # of the answer, where it is to be logged
    unread: bool = True  # its prompt counts as not yet read by the engine

    @property
    def call(self) -> Call:
        """What was asked."""
        return self.request.call

    @property
    def variant(self) -> Variant:
        """The variant this attempt is at."""
        return self.decision.variant

    @property
    def ttft_ms(self) -> float | None:
        """From the request's arrival to the first token."""
        return (self.first - self.request.arrived) * 1000 if self.first else None

    @property
    def tpot_ms(self) -> float | None:
        """For each token after the first, of several sequences on average."""
        steps = self.report.completion_tokens / self.call.sequences - 1
        return (self.last - self.first) * 1000 / steps if self.first and steps > 0 else None

    @property
    def e2e_ms(self) -> float:
        """From the request's arrival to the last token."""
        return (self.last - self.request.arrived) * 1000

    @property
    def latency(self) -> Latency | None:
        """What the variant took, from the dispatch on; None where it said too little."""
        if not self.report.completion_tokens or not self.first:
            return None
        return Latency(
            (self.first - self.dispatched) * 1000,
            self.tpot_ms or 0.0,
            (self.last - self.dispatched) * 1000,
        )

    @property
    def overhead_s(self) -> float:
        """From the request's arrival to its dispatch, less the search for documents."""
        return self.dispatched - self.request.arrived - self.request.searched_s

    @property
    def cost_usd(self) -> float:
        """Of what was read and written, at the deployment's price."""
        return self.variant.cost_usd(self.report.prompt_tokens, self.report.completion_tokens)

    def read(self) -> None:
        """The engine has read the prompt, or nobody waits for that any more."""
        if self.unread:
            self.unread = False
            self.variant.live.read(self.decision.chosen.unread_tokens)
