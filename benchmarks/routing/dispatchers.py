"""Dispatchers of the live routing benchmark: the platform's router, and baselines that run in the client.

A baseline pins each request to a variant (`MODEL:VARIANT`), so the platform needs no code for it. It knows what the router knows:
what is in flight, the prompt's length, and the answer's, since requests with `ignore_eos` have `max_tokens` of answer.
"""

import asyncio
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.routing.workloads import Outcome, Request
from serve.card import Profile

PER_REPLICA = 8  # of `threshold`: requests in flight from which a variant counts as busy
LIMITS = (4, 6, 8, 12, 16)
_NEWEST = 0.1  # weight of the newest answer in the running TPOT


class Place(NamedTuple):
    """Where a request is sent: the body's fields `model` and `budget`."""

    model: str
    budget: Mapping[str, object] | None = None


@dataclass(slots=True)
class InFlight:
    """What the client has in flight at a variant."""

    name: str
    quality: float
    cost_usd: float = 0.0
    requests: int = 0
    tokens: int = 0  # prompts to be read and answers to be written


class Dispatcher:
    """The platform's router with each request's own budget, or with `budget` for all."""

    def __init__(self, model: str, budget: Mapping[str, object] | None = None) -> None:
        self._model, self._budget = model, budget

    async def place(self, request: Request) -> Place | None:
        """Where `request` goes, when it may; None if it is refused."""
        own = request.budget.model_dump(exclude_none=True)
        return Place(f"{self._model}@best", own if self._budget is None else self._budget)

    def on_first_token(self, request: Request, place: Place) -> None:
        """Count the prompt as read."""

    def on_end(self, place: Place, outcome: Outcome) -> None:
        """Count the request as ended, however it did."""


Choice = Callable[[Sequence[InFlight]], InFlight]


class Pinned(Dispatcher):
    """Pins each request to the variant that `choose` takes of `variants`."""

    def __init__(self, model: str, variants: Sequence[InFlight], choose: Choice) -> None:
        super().__init__(model)
        self._variants = {f"{model}:{one.name}": one for one in variants}
        self._choose = choose

    async def place(self, request: Request) -> Place:
        """See `Dispatcher`."""
        chosen = self._choose(list(self._variants.values()))
        chosen.requests += 1
        chosen.tokens += request.prompt_tokens + request.output_tokens
        return Place(f"{self._model}:{chosen.name}")

    def on_first_token(self, request: Request, place: Place) -> None:
        """See `Dispatcher`."""
        self._variants[place.model].tokens -= request.prompt_tokens

    def on_end(self, place: Place, outcome: Outcome) -> None:
        """See `Dispatcher`."""
        chosen, request = self._variants[place.model], outcome.request
        chosen.requests -= 1
        chosen.tokens -= request.output_tokens
        if not outcome.first_token:
            chosen.tokens -= request.prompt_tokens


def round_robin() -> Choice:
    """Each variant in turn."""
    turns = itertools.count()
    return lambda variants: variants[next(turns) % len(variants)]


def uniform(seed: int) -> Choice:
    """A random variant."""
    return random.Random(seed).choice


def threshold(variants: Sequence[InFlight]) -> InFlight:
    """The highest quality with fewer than `PER_REPLICA` requests in flight, else the cheapest."""
    free = [one for one in variants if one.requests < PER_REPLICA]
    return max(free, key=lambda one: one.quality) if free else min(variants, key=lambda one: one.cost_usd)


def token_load(variants: Sequence[InFlight]) -> InFlight:
    """The fewest tokens to be read and written, as llm-d balances by default; ties go to quality."""
    return min(variants, key=lambda one: (one.tokens, -one.quality))


@dataclass(slots=True, order=True)
class _Waiting:
    deadline_s: float
    order: int
    arrived_s: float = field(compare=False)
    request: Request = field(compare=False)
    admitted: "asyncio.Future[bool]" = field(compare=False)


class Admission(Dispatcher):
    """A simple admission before one engine: at most `limit` requests in flight at `variant`, the earliest deadline first.

    A request is refused when its deadline, less an estimate of its time in the engine (prompt over prefill rate, and for an
    end-to-end limit the answer's tokens times the running TPOT), has passed.
    """

    def __init__(
        self, model: str, variant: str, profile: Profile, limit: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(model)
        self._place = Place(f"{model}:{variant}")
        self._profile, self._limit, self._clock = profile, limit, clock
        self._tpot_s = profile.tpot[0].p50_ms / 1000
        self._waiting: list[_Waiting] = []
        self._orders = itertools.count()
        self.in_flight = 0

    async def place(self, request: Request) -> Place | None:
        """See `Dispatcher`."""
        now, budget = self._clock(), request.budget
        limits = [limit for limit in (budget.ttft_ms, budget.e2e_ms) if limit is not None]
        deadline = now + min(limits, default=math.inf) / 1000
        one = _Waiting(deadline, next(self._orders), now, request, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, one)
        self._fill()
        latest = self._latest_start(one)
        await asyncio.wait([one.admitted], timeout=None if latest == math.inf else max(latest - now, 0.0))
        if not one.admitted.done():
            one.admitted.set_result(False)
        return self._place if one.admitted.result() else None

    def on_end(self, place: Place, outcome: Outcome) -> None:
        """See `Dispatcher`."""
        self.in_flight -= 1
        if outcome.took and outcome.request.output_tokens > 1:
            self._tpot_s += _NEWEST * (outcome.took.tpot_ms / 1000 - self._tpot_s)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and self.in_flight < self._limit:
            one = heapq.heappop(self._waiting)
            if one.admitted.done():
                continue
            admitted = self._latest_start(one) >= self._clock()
            self.in_flight += admitted
            one.admitted.set_result(admitted)

    def _latest_start(self, one: _Waiting) -> float:
        """When the request must be sent to meet its budget, by the estimate; in seconds of the clock."""
        request, budget = one.request, one.request.budget
        reading = request.prompt_tokens / self._profile.prefill_tokens_per_s
        writing = request.output_tokens * self._tpot_s
        first, last = (math.inf if ms is None else ms / 1000 for ms in (budget.ttft_ms, budget.e2e_ms))
        return one.arrived_s + min(first - reading, last - reading - writing)


def dispatcher(
    policy: str, model: str, variants: Sequence[InFlight], profiles: Mapping[str, Profile], seed: int
) -> Dispatcher:
    """The dispatcher called `policy`: `budget` and `fastest` by the platform's router, the others in this client.

    `admission-K` is `Admission` of `full`; the name of a variant pins everything to it.

    Raises:
        KeyError: there is no such dispatcher.
    """
    name, _, limit = policy.partition("-")
    if policy in ("budget", "budget-full"):
        return Dispatcher(model)
    if policy == "fastest":
        return Dispatcher(model, {"objective": "latency"})
    if name == "admission":
        return Admission(model, "full", profiles["full"], int(limit))
    known = {one.name: one for one in variants}
    if policy in known:
        return Pinned(model, variants, lambda _: known[policy])
    choices: Mapping[str, Choice] = {
        "round-robin": round_robin(), "random": uniform(seed), "threshold": threshold, "token-load": token_load
    }  # fmt: skip
    return Pinned(model, variants, choices[policy])
