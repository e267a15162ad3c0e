"""Simulation of chats at the replicas of one variant: engines with prefix caches, behind gateways that know their own requests only.

What a gateway knows, predicts and chooses is `serve.routing`'s; the engines are those of `simulated_platform`.
"""

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.routing.chats import Chat, chats, chats_per_s
from benchmarks.routing.replica_choices import CHOICES, Arriving, load_at
from benchmarks.routing.simulate import catalog
from benchmarks.routing.simulated_platform import LOOK_MS, Engine, Machine, Running
from benchmarks.routing.workloads import Outcome, Request
from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.output_lengths import OutputLengths
from serve.routing.prediction import Features, Latency, Load, Prediction
from serve.routing.prefix_exchange import PrefixExchange

VARIANT = "full"
EXCHANGE_LOOKS = 2  # intervals of `LOOK_MS` between two messages of a gateway


@dataclass(slots=True, frozen=True)
class Cell:
    """One simulation; `load` 1 is what the replicas sustain if they read nothing twice."""

    choice: str  # of `CHOICES`
    replicas: int
    load: float
    seed: int
    gateways: int = 1
    exchange: bool = True  # whether gateways tell each other what was read where
    seconds: float = 120.0
    warmup_s: float = 80.0  # before the turns that count


@dataclass(slots=True)
class Served:
    """One turn: where and when it was served, in ms, and what was predicted at its dispatch."""

    at: float
    replica: str
    prompt_tokens: int
    output_tokens: int
    expected: Latency
    cached_expected: int
    cached_tokens: int = 0
    took: Latency | None = None  # None: not complete


@dataclass(slots=True)
class _Gateway:
    variant: Variant
    exchange: PrefixExchange = field(default_factory=PrefixExchange)
    lengths: OutputLengths = field(default_factory=OutputLengths)


@dataclass(slots=True, eq=False)
class _Flight:
    chat: Chat
    turn: int
    gateway: _Gateway
    replica: str
    load: Load
    prediction: Prediction
    served: Served
    running: Running

    @property
    def uncached(self) -> int:
        return self.running.outcome.request.prompt_tokens - self.load.cached_tokens


class Site:
    """Engines and gateways of one cell."""

    def __init__(self, cell: Cell) -> None:
        noise = random.Random(cell.seed)
        self._exchanges = cell.exchange
        self._drawn = random.Random(cell.seed + 1)
        self._gateways = [_Gateway(catalog([VARIANT])[0]) for _ in range(cell.gateways)]
        variant = self._gateways[0].variant
        self._machines = {
            f"replica-{i}": Machine([Engine(variant, noise, lambda _: 1.0)]) for i in range(cell.replicas)
        }
        self._choices = [CHOICES[cell.choice](cell.seed + i) for i in range(cell.gateways)]
        if cell.choice.startswith("prefix-tree"):  # all gateways share Ray's tree
            self._choices = self._choices[:1] * cell.gateways
        for one in self._gateways:
            live = one.variant.live
            live.peers = cell.gateways - 1
            live.update_from_engines(cell.replicas, 0, 0, 0.0, variant.profile.peak.kv_cache_tokens)
            live.update_replicas(dict.fromkeys(self._machines, 0))
        self._events: list[tuple[float, int, object]] = []
        self._numbers = itertools.count()
        self._refreshed = 0
        self._flights: dict[Running, _Flight] = {}
        self.served: list[Served] = []

    def run(self, arrivals: Sequence[Chat], until_ms: float) -> list[Served]:
        """Every turn that was sent before `until_ms`."""
        for chat in arrivals:
            self._at(chat.at, (chat, 0))
        self._at(0.0, None)
        while self._events and self._events[0][0] < until_ms:
            now, _, what = heapq.heappop(self._events)
            match what:
                case None:
                    self._refresh()
                    self._at(now + LOOK_MS, None)
                case (Chat() as chat, int(turn)):
                    self._arrive(chat, turn, now)
                case (str(replica), int(version)):
                    if version == self._machines[replica].version:
                        self._advance(replica, now)
        return self.served

    def _at(self, at: float, what: object) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), what))

    def _plan(self, replica: str) -> None:
        machine = self._machines[replica]
        if (at := machine.next_event()) < math.inf:
            self._at(at, (replica, machine.version))

    def _refresh(self) -> None:
        counts = {name: machine.engines[0].requests for name, machine in self._machines.items()}
        for one in self._gateways:
            live = one.variant.live
            live.update_from_engines(len(counts), sum(counts.values()), 0, 0.0)
            live.update_replicas(counts)
            one.variant.latency.tick()
        self._refreshed += 1
        if self._exchanges and self._refreshed % EXCHANGE_LOOKS == 0:
            self._exchange()

    def _exchange(self) -> None:
        messages = [one.exchange.message([one.variant]) for one in self._gateways]
        for i, one in enumerate(self._gateways):
            others = {str(j): message for j, message in enumerate(messages) if j != i}
            one.exchange.receive(others, {VARIANT: one.variant})

    def _arrive(self, chat: Chat, number: int, now: float) -> None:
        turn = chat.turns[number]
        which = self._drawn.randrange(len(self._gateways))  # clients' connections are spread over the gateways
        gateway, choose = self._gateways[which], self._choices[which]
        live, blocks = gateway.variant.live, chat.blocks(turn.prompt_tokens)
        features = Features(turn.prompt_tokens, gateway.lengths.expect("", "", 200), blocks)
        queues = {name: machine.engines[0].requests for name, machine in self._machines.items()}
        arriving = Arriving(chat.number, features, gateway.variant, queues)
        replica = choose(arriving)
        load = load_at(arriving, replica)
        prediction = gateway.variant.latency.predict(features, load)
        whole = chat.blocks(turn.prompt_tokens + turn.output_tokens)
        request = Request(now, turn.prompt_tokens, turn.output_tokens, Budget(), blocks=blocks, all_blocks=whole)
        served = Served(now, replica, turn.prompt_tokens, turn.output_tokens, prediction.expected, load.cached_tokens)
        running = Running(Outcome(request), None, now)
        flight = _Flight(chat, number, gateway, replica, load, prediction, served, running)
        self._flights[running] = flight
        self.served.append(served)
        live.on_dispatch(flight.uncached, 1, features.output_tokens, replica)
        machine = self._machines[replica]
        machine.advance(now)
        machine.engines[0].take(running)
        self._plan(replica)

    def _advance(self, replica: str, now: float) -> None:
        machine = self._machines[replica]
        machine.advance(now)
        for event, running in machine.engines[0].step():
            flight = self._flights[running]
            live = flight.gateway.variant.live
            if event == "first":
                running.first = now
                live.on_first_token(flight.uncached, replica)
            else:
                self._complete(flight, now)
        self._plan(replica)

    def _complete(self, flight: _Flight, now: float) -> None:
        running, gateway, served = flight.running, flight.gateway, flight.served
        del self._flights[running]
        steps = served.output_tokens - 1
        tpot = (now - running.first) / steps if steps else 0.0
        served.took = Latency(running.first - running.started, tpot, now - running.started)
        served.cached_tokens = running.cached_tokens
        live = gateway.variant.live
        live.on_complete(1, flight.replica)
        live.remember_prefix(running.outcome.request.blocks, flight.replica)
        gateway.lengths.observe("", "", served.output_tokens)
        flight.prediction.observe(served.took.ttft_ms, served.took.tpot_ms or None, served.took.e2e_ms)
        if flight.turn + 1 < len(flight.chat.turns):
            following = flight.chat.turns[flight.turn + 1]
            self._at(now + following.think_s * 1000, (flight.chat, flight.turn + 1))


def simulate(cell: Cell) -> list[Served]:
    """The turns of one cell that were sent after the warm-up."""
    until_ms = (cell.warmup_s + cell.seconds) * 1000
    rate = cell.load * cell.replicas * chats_per_s(catalog([VARIANT])[0].profile)
    arrivals = list(itertools.takewhile(lambda chat: chat.at < until_ms, chats(rate, cell.seed)))
    return [one for one in Site(cell).run(arrivals, until_ms) if one.at >= cell.warmup_s * 1000]
