"""Health of engine replicas: which ones have stalled, are ejected, are probed and come back.

A replica has stalled when it has work and nothing came of it for longer than predicted, and its metrics do not answer either; or
when nothing came of it for so long that no work explains it. What comes of it are tokens: of its streams, and those that its
engine counts, also for answers that are not streamed. One slow request is no stall.
The state is a function of the times that are passed in, seconds of one monotonic clock.
"""

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

FLOOR_S = 2.0  # shortest silence that is a stall
HUNG_S = 15.0  # silence of streams that is a stall even of an engine whose metrics answer
CEILING_S = 30.0  # the same of the only replica, and of requests without a first token
STEPS = 8.0  # predicted times per token that may pass without one
LATE_S = 5.0  # without an answer to a poll, after which a replica without work is ejected
PROBE_EVERY_S = 1.0
RAMP_S = 10.0  # from the first good probe until a replica gets its whole share again


@dataclass(slots=True, eq=False)
class Exchange:
    """One request at a replica, from its dispatch to its end."""

    replica: "_Replica"
    interrupt: Callable[[], None] = lambda: None  # ends the wait for the replica
    decoding: bool = False  # whether its first token has arrived
    stalled: bool = False  # whether it was interrupted


@dataclass(slots=True, eq=False)
class _Replica:
    url: str
    exchanges: set[Exchange] = field(default_factory=set)
    active_at: float = 0.0  # the last time that something came from it, or that it got work
    tokens: float | None = None  # that its engine had counted at the last poll
    answered_at: float | None = None  # the last poll that it answered; None before the first
    late: bool = False  # whether it did not answer the last poll
    ejected_at: float | None = None
    probed_at: float = 0.0
    returned_at: float | None = None

    def stalled(self, now: float, limit_s: float, alone: bool) -> bool:
        """Whether the replica has stalled by `now`, where a silence of `limit_s` is more than predicted."""
        if not self.exchanges:
            return self.late and not alone and self.answered_at is not None and now - self.answered_at > LATE_S
        silent_s = now - self.active_at
        if self.late and not alone:
            return silent_s > min(limit_s, CEILING_S)
        if any(exchange.decoding for exchange in self.exchanges):
            return silent_s > max(CEILING_S if alone else HUNG_S, limit_s)
        return silent_s > max(CEILING_S, 2 * limit_s)


class ReplicaHealth:
    """The replicas of all variants, by base URL."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._troubled: set[str] = set()  # ejected, or on their way back

    @property
    def troubled(self) -> bool:
        """Whether any replica is ejected, or on its way back."""
        return bool(self._troubled)

    def begin(self, url: str, now: float) -> Exchange:
        """Count a request that is sent to the replica; `end` follows."""
        replica = self._replicas.get(url) or self._replicas.setdefault(url, _Replica(url))
        if not replica.exchanges:
            replica.active_at = now
        exchange = Exchange(replica)
        replica.exchanges.add(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Count the request as ended."""
        exchange.replica.exchanges.discard(exchange)

    def on_poll(self, url: str, answered: bool, now: float, tokens: float | None = None) -> None:
        """Note whether the replica answered a poll of its metrics in time, and how many tokens its engine has counted."""
        replica = self._replicas.get(url) or self._replicas.setdefault(url, _Replica(url))
        replica.late = not answered
        if answered:
            replica.answered_at = now
        if tokens is not None and tokens != replica.tokens:
            replica.tokens, replica.active_at = tokens, now

    def eject(self, url: str, now: float) -> bool:
        """Send nothing more to the replica until a probe succeeds; its requests are interrupted. False if it is ejected already."""
        replica = self._replicas.get(url) or self._replicas.setdefault(url, _Replica(url))
        if replica.ejected_at is not None:
            return False
        replica.ejected_at, replica.returned_at, replica.probed_at = now, None, now
        self._troubled.add(url)
        for exchange in list(replica.exchanges):
            exchange.stalled = True
            exchange.interrupt()
        return True

    def stalled(self, url: str, limit_s: float, alone: bool, now: float) -> bool:
        """Whether the replica has stalled.

        Args:
            url: its base URL.
            limit_s: silence of a busy replica of its variant that is more than predicted.
            alone: whether too few other replicas are left to take over; then only a silence of `CEILING_S` is a stall.
        """
        replica = self._replicas.get(url)
        return replica is not None and replica.ejected_at is None and replica.stalled(now, limit_s, alone)

    def forget(self, running: Collection[str], now: float) -> None:
        """Forget replicas that no longer run, and that they were ejected once they have their whole share again."""
        for url in [url for url, one in self._replicas.items() if url not in running and not one.exchanges]:
            del self._replicas[url]
            self._troubled.discard(url)
        for url in list(self._troubled):
            replica = self._replicas[url]
            if replica.returned_at is not None and now - replica.returned_at > RAMP_S:
                replica.returned_at = None
                self._troubled.discard(url)

    def resume(self, now: float) -> None:
        """Measure all silence from `now`: this process stood still itself."""
        for replica in self._replicas.values():
            replica.active_at = now
            replica.answered_at = replica.answered_at and now

    def to_probe(self, now: float) -> list[str]:
        """Ejected replicas whose next probe is due; `on_probe` follows."""
        due = [
            url
            for url in self._troubled
            if (one := self._replicas[url]).ejected_at is not None and now - one.probed_at >= PROBE_EVERY_S
        ]
        for url in due:
            self._replicas[url].probed_at = float("inf")
        return due

    def on_probe(self, url: str, answered: bool, now: float) -> None:
        """Note the result of a probe: after a good one, the replica gets a share of the requests that grows for `RAMP_S`."""
        if (replica := self._replicas.get(url)) is None or replica.ejected_at is None:
            return
        replica.probed_at = now
        if answered:
            replica.ejected_at, replica.returned_at = None, now
            replica.active_at, replica.late, replica.answered_at = now, False, now

    def ejected(self, urls: Iterable[str]) -> set[str]:
        """Those of `urls` that are ejected."""
        return {url for url in self._troubled.intersection(urls) if self._replicas[url].ejected_at is not None}

    def avoided(self, urls: Iterable[str], now: float, rng: Callable[[], float] = random.random) -> set[str]:
        """Those of `urls` that the next request avoids: the ejected ones, and those on their way back, by chance."""
        avoided = set()
        for url in self._troubled.intersection(urls):
            returned_at = self._replicas[url].returned_at
            if returned_at is None or rng() > (now - returned_at) / RAMP_S:
                avoided.add(url)
        return avoided
