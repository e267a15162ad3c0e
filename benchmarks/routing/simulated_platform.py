"""Discrete-event simulation of the platform: engines and machines modelled from cards, behind the platform's own router.

The router and its predictions are those of the platform. Only the engines are modelled, from their cards, in steps
like vLLM's scheduler: waiting prompts are prefilled together in one step, in which every running answer gets one token, the
earliest deadline first; between such steps all answers decode together at the profile's time per token. Variants on one machine
share its cores.
"""

import copy
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.routing.baselines import admission
from benchmarks.routing.prefix_cache import PrefixCache
from benchmarks.routing.workloads import Outcome, Request, after_wait
from serve.errors import RequestError
from serve.routing.candidate import CONFIDENCE
from serve.routing.catalog import Variant
from serve.routing.curve import Curve
from serve.routing.output_lengths import OutputLengths
from serve.routing.prediction import Features, Latency
from serve.routing.router import Decision, Policy
from serve.routing.waiting_queue import Waiting

LOOK_MS = 500.0  # interval of the gateway's engine polling
CHUNK = 2048  # prompt tokens prefilled in one step; vLLM's max_num_batched_tokens on CPUs
LUCK_MS = 1000.0  # mean time between changes of an engine's random speed factor


@dataclass(slots=True, eq=False)
class Running:
    """A request at an engine; `started`, `first` and the `deadline` of its first token in ms, `cached_tokens` of its prompt were
    in the engine's prefix cache.
    """

    outcome: Outcome
    decision: Decision | None = None
    started: float = 0.0
    deadline: float = 0.0
    first: float = 0.0
    cached_tokens: int = 0


class Engine:
    """One replica. Times are its own work in ms, multiplied by `slow` and the random `luck`."""

    def __init__(self, variant: Variant, noise: random.Random, drift: Callable[[float], float]) -> None:
        self.variant = variant
        self.slow = 1.0  # number of busy variants on this machine
        self._noise, self._drift = noise, drift
        profile = variant.profile
        tpot = Curve((point.concurrency, point.p50_ms) for point in profile.tpot)
        self._tpot = [tpot(batch) for batch in range(variant.max_running + 1)]
        alone = [point for point in profile.ttft if point.concurrency == 1] or profile.ttft
        self._reading_ms = Curve((point.prompt_tokens, point.p50_ms) for point in alone)
        self._sigma = math.log(max(point.p95_ms / point.p50_ms for point in profile.tpot)) / 1.645
        self._writing: list[tuple[float, int, Running]] = []  # ordered by the token count at which each is done
        self._waiting: list[tuple[float, int, Running]] = []  # ordered by deadline, then arrival
        self._reading: list[Running] = []
        self._step_ms = self._left_ms = 0.0  # of the prefill step
        self._step_tokens = 1.0  # tokens that each answer gets during it
        self._written = 0.0  # tokens decoded so far by an answer present from the start
        self._at = self._lucky_until = 0.0
        self._luck = 1.0
        self._order = 0
        self._streamed = [0.0, 0.0, 0.0]  # see `streamed`
        self._cache = PrefixCache(profile.peak.kv_cache_tokens)

    @property
    def busy(self) -> bool:
        """Whether the engine has requests."""
        return bool(self._writing or self._reading or self._waiting)

    @property
    def requests(self) -> int:
        """Number of requests at the engine, including waiting ones."""
        return len(self._writing) + len(self._waiting) + len(self._reading)

    def advance(self, now: float) -> None:
        """Simulate the engine's work until `now`."""
        work = (now - self._at) / self._pace()
        written, sequences = self._written, len(self._writing)
        if self._reading:
            self._left_ms -= work
            self._written += work / self._step_ms * self._step_tokens
        elif self._writing:
            self._written += work / self._tpot[len(self._writing)]
        if sequences:
            tokens = (self._written - written) * sequences
            for i, value in enumerate(((now - self._at) * sequences, tokens, tokens * self.requests)):
                self._streamed[i] += value
        self._at = now
        if now >= self._lucky_until:
            self._luck = math.exp(self._noise.gauss(0, self._sigma)) * self._drift(now)
            self._lucky_until = now + self._noise.expovariate(1 / LUCK_MS)

    def streamed(self) -> tuple[float, float, float]:
        """Since the last call: time between tokens, ms, number of tokens, and sequences at each, added up over all tokens."""
        found, self._streamed = tuple(self._streamed), [0.0, 0.0, 0.0]
        return found  # type: ignore[return-value]

    def take(self, running: Running) -> None:
        """Add an arriving request; call `advance` first."""
        self._order += 1
        heapq.heappush(self._waiting, (running.deadline, self._order, running))
        self._read()

    def step(self) -> Iterator[tuple[str, Running]]:
        """Events until now, ("first" | "done", request); call `advance` first."""
        if self._reading:
            if self._left_ms > 1e-6:
                return
            read, self._reading = self._reading, []
            for running in read:
                self._cache.add(running.outcome.request.blocks)
                yield "first", running
                if (steps := running.outcome.request.output_tokens - 1) <= 0:
                    yield "done", running
                else:
                    self._order += 1
                    heapq.heappush(self._writing, (self._written + steps, self._order, running))
        while self._writing and self._writing[0][0] <= self._written + 1e-6:
            running = heapq.heappop(self._writing)[2]
            self._cache.add(running.outcome.request.all_blocks)
            yield "done", running
        self._read()

    def next_event(self) -> float:
        """Time of the next event, ms."""
        if self._reading:
            return self._at + self._left_ms * self._pace()
        if self._writing:
            return (
                self._at + max(self._writing[0][0] - self._written, 0.0) * self._tpot[len(self._writing)] * self._pace()
            )
        return math.inf

    def alone(self, request: Request, slow: float) -> Latency:
        """Latency of `request` here if nothing arrived after it, with `slow` busy engines and constant luck."""
        engine = copy.copy(self)
        engine._writing, engine._waiting, engine._reading = (
            self._writing.copy(),
            self._waiting.copy(),
            self._reading.copy(),
        )
        engine._lucky_until, engine.slow, engine._streamed = math.inf, slow, [0.0, 0.0, 0.0]
        engine._cache = copy.deepcopy(self._cache)
        deadline = request.at + request.budget.first_token_by_ms(0.0)
        running, started, first = Running(Outcome(request), deadline=deadline), self._at, self._at
        engine.take(running)
        while True:
            engine.advance(engine.next_event())
            for event, one in engine.step():
                if one is running and event == "first":
                    first = engine._at
                elif one is running:
                    steps = request.output_tokens - 1
                    return Latency(
                        first - started, (engine._at - first) / steps if steps > 0 else 0.0, engine._at - started
                    )

    def _pace(self) -> float:
        return self._luck * self.slow

    def _read(self) -> None:
        """Start a prefill step with the waiting prompts that fit."""
        if self._reading:
            return
        tokens, writing = 0, len(self._writing)
        while self._waiting and writing + len(self._reading) < self.variant.max_running:
            one = self._waiting[0][2]
            prompt = one.outcome.request.prompt_tokens - (cached := self._cache.tokens(one.outcome.request.blocks))
            if self._reading and tokens + prompt > CHUNK:
                break
            tokens += prompt
            one.cached_tokens = cached
            self._reading.append(heapq.heappop(self._waiting)[2])
        if self._reading:
            self._step_ms, self._step_tokens = self._reading_ms(tokens), 1.0
            if writing:  # decode tokens beside the prompts, and before them half of the current step
                self._step_ms += self._tpot[writing] - self._tpot[1] + self._tpot[writing] / 2
                self._step_tokens = 1.5
            self._left_ms = self._step_ms


class Machine:
    """Engines that share cores: each is slowed down by the number of busy engines."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self.version = 0  # of its next event: events of older versions are stale

    def advance(self, now: float) -> None:
        """Bring all engines to `now`."""
        for engine in self.engines:
            engine.advance(now)

    def next_event(self) -> float:
        """Time of the machine's next event, ms. Call it after every change."""
        self.version += 1
        busy = float(sum(engine.busy for engine in self.engines))
        for engine in self.engines:
            engine.slow = max(busy, 1.0)
        return min(engine.next_event() for engine in self.engines)


class Platform:
    """Machines with variants behind one router.

    Args:
        machines: the names of the variants whose replicas share each machine.
        drift: slowdown factor of the engines against their profiles, by time in ms.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        machines: Sequence[Sequence[str]],
        policy: Policy,
        seed: int = 0,
        drift: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        noise = random.Random(seed)
        self._random = random.Random(seed + 1)
        self.variants = list(variants)
        self.request: Request | None = None  # the request being routed
        self.foreseen: Latency | None = None  # the oracle's expected latency of it
        self.admission = admission(policy)
        self._lengths = OutputLengths()
        self.engines: dict[str, list[tuple[Engine, Machine]]] = {variant.name: [] for variant in variants}
        known = {variant.name: variant for variant in variants}
        for names in machines:
            machine = Machine([Engine(known[name], noise, drift) for name in names])
            for name in names:
                known[name].live.hardware |= {
                    "+".join(names)
                }  # machines with the same variants are alike to the router
            for engine in machine.engines:
                self.engines[engine.variant.name].append((engine, machine))
        for variant in variants:
            variant.live.update_from_engines(len(self.engines[variant.name]), 0, 0, 0.0)
        self._events: list[tuple[float, int, Machine, int]] = []
        self._numbers = itertools.count()
        self.now = 0.0
        self._more = False  # whether a waiting request has started, after which another one may

    def run(self, trace: Iterable[Request]) -> Iterator[Outcome]:
        """Yield every request's outcome in the order of the trace; outcomes are complete after the last."""
        refreshed_at = 0.0
        for request in trace:
            while request.at >= refreshed_at + LOOK_MS:
                refreshed_at += LOOK_MS
                self._until(refreshed_at)
                self.now = refreshed_at
                self._tick()
            self._until(request.at)
            self.now = request.at
            yield self._arrive(request)
        while self._events or len(self.admission):
            refreshed_at += LOOK_MS
            self._until(refreshed_at)
            self.now = refreshed_at
            self._tick()

    def place(self, name: str) -> tuple[Engine, Machine]:
        """Replica for the next request of a variant: the shorter of two queues, like Ray Serve's power-of-two choices."""
        engines = self.engines[name]
        pair = engines if len(engines) <= 2 else self._random.sample(engines, 2)
        return min(pair, key=lambda one: one[0].requests)

    def _arrive(self, request: Request) -> Outcome:
        outcome = Outcome(request)
        expected = self._lengths.expect("", request.kind, request.output_tokens)
        self.request = request

        def decided(found: Decision | RequestError) -> None:
            if isinstance(found, RequestError):
                outcome.reason, outcome.refused_ms = found.code or "", self.now - request.at
            else:
                self._dispatch(outcome, found)

        waiting = Waiting(
            request.budget, Features(request.prompt_tokens, expected), request.at / 1000, decided,
            tenant=request.tenant, weight=request.weight,
        )  # fmt: skip
        self.admission.submit(self.variants, waiting, request.at / 1000)
        return outcome

    def _dispatch(self, outcome: Outcome, decision: Decision) -> None:
        request, now = outcome.request, self.now
        variant, prediction = decision.variant, decision.chosen.prediction
        waited = now - request.at
        outcome.variant, outcome.quality, outcome.reason = variant.name, variant.quality.quality, decision.reason
        outcome.expected = self.foreseen or after_wait(waited, prediction.expected)
        outcome.tail = after_wait(waited, prediction.tail(CONFIDENCE))
        outcome.cost_usd = variant.cost_usd(request.prompt_tokens, request.output_tokens)
        variant.live.on_dispatch(request.prompt_tokens, 1, decision.features.output_tokens)
        engine, machine = self.place(variant.name)
        machine.advance(now)
        engine.take(Running(outcome, decision, now, request.at + decision.chosen.first_token_by_ms(request.budget)))
        self._plan(machine)
        self._more = decision.waited

    def _pump(self) -> None:
        """Start what has a place now, one after the other: each counts as in flight before the next is decided."""
        self._more = True
        while self._more:
            self._more = False
            self.admission.pump(self.variants, self.now / 1000)

    def _poll(self, variant: Variant) -> None:
        live = variant.live
        live.update_from_engines(live.replicas, live.in_flight, 0, 0.0)
        variant.latency.tick()

    def _tick(self) -> None:
        """What the gateway does regularly."""
        for variant, load in self.admission.router.loads(self.variants):
            self._poll(variant)
            streamed = [engine.streamed() for engine, _ in self.engines[variant.name]]
            if tokens := sum(count for _, count, _ in streamed):
                spent_ms = sum(ms for ms, _, _ in streamed) / tokens
                at = sum(sequences for _, _, sequences in streamed) / tokens
                variant.latency.observe_steps(spent_ms, tokens, at, load)
        self.admission.roll(self.variants, self.now / 1000)
        self._pump()

    def _until(self, limit: float) -> None:
        while self._events and self._events[0][0] <= limit:
            at, _, machine, version = heapq.heappop(self._events)
            if version != machine.version:
                continue
            self.now = at
            machine.advance(at)
            for engine in machine.engines:
                for event, running in engine.step():
                    self._happened(event, running, at)
            self._plan(machine)

    def _plan(self, machine: Machine) -> None:
        if (at := machine.next_event()) < math.inf:
            heapq.heappush(self._events, (at, next(self._numbers), machine, machine.version))

    def _happened(self, what: str, running: Running, now: float) -> None:
        outcome, decision = running.outcome, running.decision
        if decision is None:
            raise AssertionError("only decided requests run")
        live, request = decision.variant.live, outcome.request
        if what == "first":
            running.first = now
            live.on_first_token(request.prompt_tokens)
            return
        steps = request.output_tokens - 1
        tpot = (now - running.first) / steps if steps > 0 else 0.0
        took = Latency(running.first - running.started, tpot, now - running.started)
        outcome.took = after_wait(running.started - request.at, took)
        live.on_complete()
        self._lengths.observe("", request.kind, request.output_tokens)
        decision.chosen.prediction.observe(took.ttft_ms, took.tpot_ms or None, took.e2e_ms)
        if request.budget.timed and decision.reason != "nearest_miss":
            self.admission.class_of(request.budget).observe(decision, took)
        self._pump()
