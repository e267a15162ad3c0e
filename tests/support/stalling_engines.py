"""Engines that stop, read long prompts or are slow, under the watch of `ReplicaHealth`: in simulated time, without sockets."""

import math
from dataclasses import dataclass, field
from typing import Literal

from serve.gateway.replica_health import CHECK_S, MIN_STALL_S, PROBE_TIMEOUT_S, SILENT_TOKENS, Exchange, ReplicaHealth

TICK_S = 0.05
POLL_EVERY_S = 0.5
POLL_TIMEOUT_S = 2.0
ANSWERS_IN_S = 0.05


@dataclass(slots=True, eq=False)
class Answer:
    """A request at an engine; `reads_s` of work come before its first token."""

    exchange: Exchange
    reads_s: float
    stream: bool = True
    client_reads: bool = True
    buffered: bool = False  # its tokens are held back by the server
    tokens: int = 0
    left: float = math.inf  # tokens


@dataclass(slots=True, eq=False)
class Engine:
    """`stopped`: its core alone, whose server goes on to answer with numbers that do not change, or all of it."""

    url: str
    step_s: float = 0.05
    stopped: Literal["core", "all"] | None = None
    answers_in_s: float = ANSWERS_IN_S  # its server
    metrics_in_s: float = 0.0  # if they take longer
    answers: list[Answer] = field(default_factory=list)
    tokens: float = 1000.0
    kv_usage: float = 0.0
    cpu_s: float | None = None  # None: it reports none
    _stepped_at: float = 0.0

    @property
    def stats(self) -> dict[str, float]:
        """What its server reports."""
        stats = {"tokens": self.tokens, "kv_cache_usage_perc": self.kv_usage}
        return stats if self.cpu_s is None else {**stats, "cpu_s": self.cpu_s}

    @property
    def reading(self) -> Answer | None:
        """The request whose prompt it reads."""
        return next((answer for answer in self.answers if answer.reads_s > 0), None)

    def work(self, now: float) -> None:
        """Read prompts first, then write a token of each answer."""
        if self.stopped:
            return
        if self.cpu_s is not None and self.answers:
            self.cpu_s += TICK_S / 4  # beside other engines
        if reading := self.reading:
            reading.reads_s -= TICK_S
            self._stepped_at = now
        elif now - self._stepped_at >= self.step_s:
            self._stepped_at = now
            for answer in [answer for answer in self.answers if answer.left > 0]:
                self._write(answer, now)

    def _write(self, answer: Answer, now: float) -> None:
        answer.tokens += 1
        answer.left -= 1
        self.tokens += 1
        exchange = answer.exchange
        if not answer.stream or answer.buffered:
            return
        if answer.tokens == 1:
            exchange.on_first_token(now)
        if answer.client_reads:
            exchange.replica.active_at = exchange.waiting_since = now
        else:
            exchange.waiting_since = math.inf


class Platform:
    """Engines, and a gateway that polls, probes and checks them."""

    def __init__(self, *engines: Engine, warm: bool = True) -> None:
        self.engines = {engine.url: engine for engine in engines}
        self.now = 0.0
        self.health = ReplicaHealth()
        self.ejected_at: dict[str, float] = {}
        self.returned_at: dict[str, float] = {}
        self.suspected: set[str] = set()
        self._polls: dict[str, float] = {}  # when each was sent
        self._probes: dict[str, float] = {}
        self._due = dict.fromkeys(self.engines, 0.0)
        if not warm:
            for engine in engines:
                engine.tokens = 0.0
        self.run(2.0)

    def ask(self, url: str, reads_s: float = 0.1, predicted_s: float | None = None, **more: object) -> Answer:
        """Send a request to the engine, whose prompt takes `reads_s` to read."""
        exchange = self.health.begin(url, self.now, reads_s if predicted_s is None else predicted_s)
        answer = Answer(exchange, reads_s, **more)  # type: ignore[arg-type]
        self.engines[url].answers.append(answer)
        return answer

    def end(self, answer: Answer) -> None:
        self.health.end(answer.exchange)
        self.engines[answer.exchange.replica.url].answers.remove(answer)

    def leave(self, answer: Answer) -> None:
        """Its client goes; the engine drops the request once it has read the prompt that it reads."""
        engine = self.engines[answer.exchange.replica.url]
        self.health.leave(answer.exchange, self.now)
        if engine.reading is answer:
            answer.left = 0
        else:
            engine.answers.remove(answer)

    def run(self, seconds: float) -> None:
        end = self.now + seconds - TICK_S / 2
        while self.now < end:
            ticks = round(self.now / TICK_S) + 1
            self.now = ticks * TICK_S
            for engine in self.engines.values():
                engine.work(self.now)
                self._poll(engine)
                self._answer_probe(engine)
            if ticks % round(CHECK_S / TICK_S) == 0:
                self._check()

    def _poll(self, engine: Engine) -> None:
        url, now = engine.url, self.now
        if url not in self._polls and now >= self._due[url] and url not in self.health.ejected([url]):
            self._polls[url] = now
            self.health.on_poll_sent(url, now)
        if (sent := self._polls.get(url)) is None:
            return
        answered = engine.stopped != "all" and now - sent >= max(engine.answers_in_s, engine.metrics_in_s)
        if answered or now - sent > POLL_TIMEOUT_S:
            if answered:
                self.health.on_poll(url, engine.stats, now)
            del self._polls[url]
            self._due[url] = now + POLL_EVERY_S

    def _answer_probe(self, engine: Engine) -> None:
        if (sent := self._probes.get(engine.url)) is None:
            return
        answered = not engine.stopped and not any(answer.reads_s > 0 for answer in engine.answers)
        answered = answered and self.now - sent >= max(engine.step_s, engine.answers_in_s)
        if answered or self.now - sent > PROBE_TIMEOUT_S:
            del self._probes[engine.url]
            engine.tokens += answered
            was = self.health.ejected([engine.url])
            self.health.on_probe(engine.url, answered, self.now)
            if was and not self.health.ejected([engine.url]):
                self.returned_at[engine.url] = self.now

    def _check(self) -> None:
        predicted_s = {url: max(MIN_STALL_S, SILENT_TOKENS * 0.05) for url in self.engines}
        self.health.forget(predicted_s, self.now)
        for url, _ in self.health.check(predicted_s, self.now):
            self.health.eject(url, self.now)
            self.ejected_at[url] = self.now
            for answer in list(self.engines[url].answers):
                self.end(answer)
        self.suspected |= self.health.suspects
        self._probes |= dict.fromkeys(self.health.to_probe(self.now), self.now)
