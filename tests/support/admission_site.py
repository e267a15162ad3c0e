"""A gateway's admission with variants of its own, whose requests end when a test says so."""

from dataclasses import dataclass, field

from benchmarks.lib.sample_catalog import REQUEST, make_live_variant, make_profile
from serve.budget import Budget
from serve.errors import RequestError
from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.router import Decision, Router
from serve.routing.waiting_queue import Waiting

# 20 ms per token alone, 20 ms more for each other sequence; a prompt of 100 tokens takes 100 ms
PROFILE = make_profile([(100, 1, 100)], [(1, 20), (8, 160)])
# two sequences run within 50 ms per token, for whose prediction a margin of 1.2 applies at first
PACED = {"tpot_ms": 50}


def engine(name: str = "full", **changes) -> Variant:
    """A variant with hardware of its own."""
    made = make_live_variant(name, profile=PROFILE, **{"max_running": 8, "max_waiting": 8, **changes})
    made.live.hardware = frozenset({name})
    return made


@dataclass(eq=False)
class Submitted:
    """One request, and what came of it."""

    waiting: Waiting
    decisions: list[Decision | RequestError] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return bool(self.decisions) and isinstance(self.decisions[0], Decision)

    @property
    def waits(self) -> bool:
        return not self.decisions

    @property
    def error(self) -> RequestError:
        (found,) = self.decisions
        assert isinstance(found, RequestError)
        return found

    @property
    def variant(self) -> Variant:
        (found,) = self.decisions
        assert isinstance(found, Decision)
        return found.variant


class Site:
    """A gateway's admission and its variants; what starts is in flight until `complete`."""

    def __init__(self, *variants: Variant) -> None:
        self.variants = list(variants) or [engine()]
        self.admission = Admission(Router(WithinBudget(explore=0)))
        self.now = 0.0

    def ask(
        self,
        *,
        features: Features = REQUEST,
        pinned: str | None = None,
        tenant: str = "",
        weight: float = 1.0,
        **limits,
    ) -> Submitted:
        one: Submitted

        def decided(found: Decision | RequestError) -> None:
            one.decisions.append(found)
            if isinstance(found, Decision):
                found.variant.live.on_dispatch(0, features.sequences, features.total_output_tokens)
                if found.waited:
                    self.admission.pump(self.variants, self.now)

        one = Submitted(Waiting(Budget(**limits), features, self.now, decided, pinned, tenant=tenant, weight=weight))
        self.admission.submit(self.variants, one.waiting, self.now)
        return one

    def complete(self, one: Submitted) -> None:
        one.variant.live.on_complete(one.waiting.features.sequences)
        self.admission.pump(self.variants, self.now)

    def roll(self, seconds: float = 0.0) -> None:
        """Let the time pass as the gateway does."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            self.admission.roll(self.variants, self.now)

    def queued_ms(self) -> float:
        return sum(one.queued_ms for one in self.admission.classes.values())
