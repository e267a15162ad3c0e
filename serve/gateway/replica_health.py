"""Health of engine replicas: which ones are suspect, have stalled, are ejected, are probed and come back.

A replica is silent while requests wait for it and nothing comes of it: no part of a stream, and no change in what its engine
reports, which counts answers that are not streamed too. A silence longer than predicted makes it suspect: new requests go
elsewhere where they can, and it is probed at once. It has stalled when the silence lasts, the probe is not answered, and its
metrics do not answer either or show an engine that does nothing, as CPU time tells of one without a GPU. One slow request is no
stall, and neither are engines that are all slow together. The silence goes on when a client leaves, while others or the probe wait.
The state is a function of the times that are passed in, seconds of one monotonic clock.

All thresholds are here, and explained in docs/operations/failover.md.
"""

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CHECK_S = 0.2  # between two checks
PAUSE_S = 1.0  # between two checks, after which this process itself has stood still
MIN_STALL_S = 2.0  # shortest silence that is a stall
MAX_STALL_S = 30.0  # longest silence that is none, whatever explains it but prompts that are read
SILENT_TOKENS = 8.0  # predicted times per token that may pass without one
GAP_FACTOR = 2.0  # times the longest recent silence that ended by itself
GAP_HALF_LIFE_S = 30.0  # in which half of such a silence is forgotten
PREFILL_FACTOR = 2.0  # times the predicted time to read the prompts that may pass without a token
BATCH_S = 0.2  # between requests whose prompts an engine may read in one step
MIN_BUSY_CORES = 0.05  # that an engine without a GPU uses while it computes, however many others share the cores
SUSPECT_SHARE = 0.5  # share of the silence that is a stall, after which a replica is suspect
ANSWER_S = 1.0  # in which a healthy replica answers a probe, or a poll of its metrics
LATE_S = 5.0  # without an answer to a poll or a probe, after which a replica without work is ejected
BUSY_LATE_S = 3.0  # the same of one that has prompts to read, whose server may have to wait for CPU
VOUCHED_S = 3.0  # after a probe that was answered in time, in which late polls alone make no replica suspect
MIN_SERVING_SHARE = 0.5  # of all replicas; where more seem to have stalled, the machine is slow
PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 5.0
RAMP_S = 10.0  # from the first good probe until a replica gets its whole share again

EjectionCause = Literal["stalled", "unreachable"]


@dataclass(slots=True, eq=False)
class Exchange:
    """One request at a replica, from its dispatch to its end."""

    replica: "_Replica"
    started_at: float
    waiting_since: float  # for the replica; infinite while the gateway waits for the client, or for nothing more
    reads_until: float  # before then, reading its prompt explains that nothing comes
    moved: bool = False  # whether it has left another replica, which may have been silent because of it
    left_at: float = math.inf  # when its client went, before anything came
    interrupt: Callable[[], None] = lambda: None  # ends the wait for the replica
    stalled: bool = False  # whether it was interrupted because the replica has stalled

    def on_first_token(self, now: float) -> None:
        """Note that the prompt has been read."""
        self.reads_until = 0.0
        self.replica.warm, self.replica.active_at = True, now


@dataclass(slots=True, eq=False)
class _Replica:
    url: str
    exchanges: set[Exchange] = field(default_factory=set)
    left: set[Exchange] = field(default_factory=set)  # those whose clients have gone, and nothing has come since
    probe: Exchange | None = None  # the one under way, where requests waited for it too
    active_at: float = 0.0  # the last time that something came of it: a part of a stream, or the answer to a probe
    changed_at: float = 0.0  # the last poll that showed something else than the one before
    warm: bool = False  # whether it has generated a token: the first may have to wait for kernels to be compiled
    stats: Mapping[str, float] | None = None  # of its engine, at the last poll that it answered
    cpu_s: float | None = None  # CPU time of its engine then; None where it reports none
    computing: bool = False  # whether its engine has used CPU time between the last two polls that it answered
    answered: tuple[float, float] = (-math.inf, -math.inf)  # the last two polls that it answered
    polled_at: float | None = None  # the first poll that it has not answered
    refused: bool = False  # whether nobody listened at the last poll
    probed_at: float = -math.inf  # when the last probe was sent, or ended
    probing: bool = False
    vouched_at: float = -math.inf  # when it answered a probe in time last
    unanswered_since: float | None = None  # the first probe that has not been answered while it is suspect
    ejected_at: float | None = None
    answered_late: bool = False  # whether it answered the last probe since then, but not in time
    returned_at: float | None = None
    # as of the last check:
    busy: bool = False  # whether requests wait for it
    reading: bool = False  # whether the prompts that it has to read explain its silence
    late: bool = False  # whether it has not answered a poll in time
    frozen: bool = False  # whether two polls have shown no change since its silence started, and no computing
    blamed: bool = False  # whether a request without its first token may keep it silent, as it did another replica
    suspect: bool = False
    silent_s: float = 0.0
    limit_s: float = MIN_STALL_S  # silence that is a stall
    gap_s: float = 0.0  # longest recent silence that ended by itself
    _unexplained_s: float = 0.0  # of the silence
    _seen_at: float = 0.0  # when something had come

    def observe(self, predicted_s: float, now: float, decay: float) -> None:
        """Measure the silence, of which `predicted_s` are predicted; earlier silences are multiplied by `decay`."""
        came_at = max(self.active_at, self.changed_at)
        waiting = [one for one in self.exchanges if one.waiting_since < math.inf]
        streams = any(one.reads_until == 0 for one in waiting)
        heard_at = max(self.active_at, self.changed_at - ANSWER_S)  # a poll may show what was before
        self.left = {one for one in self.left if one.left_at >= heard_at and (waiting or one.reads_until > now)}
        if waiting:
            waiting += self.left
        else:  # the silence ends, but not what the engine does
            for one in self.left:
                one.waiting_since = math.inf
        waiting_since = min((one.waiting_since for one in waiting), default=math.inf)
        since, streamed_at = max(waiting_since, came_at), max(waiting_since, self.active_at)
        # prompts that come later explain no silence that has started, which streams show at once and polls later; where polls show
        # work long after that, streams are silent for another reason, such as calls of functions that are sent as a whole
        latest = BATCH_S + (streamed_at if streams and self.changed_at <= streamed_at + ANSWER_S else since)
        reads_until = max((one.reads_until for one in waiting if one.started_at <= latest), default=0.0)
        self.silent_s = max(0.0, now - since)
        self.busy, self.reading = waiting_since < math.inf, now < reads_until
        self.late = self.polled_at is not None and now - self.polled_at >= ANSWER_S and self.answered[1] > -math.inf
        self.frozen = (
            self.stats is not None and "tokens" in self.stats and self.answered[0] > since and not self.computing
        )
        self.blamed = any(one.moved and one.reads_until > 0 for one in waiting)
        self.gap_s *= decay
        if came_at > self._seen_at:
            self.gap_s, self._seen_at = max(self.gap_s, self._unexplained_s), came_at
        self._unexplained_s = max(0.0, now - max(since, reads_until))
        self.limit_s = min(max(predicted_s, MIN_STALL_S, GAP_FACTOR * self.gap_s), MAX_STALL_S)
        if self.busy:
            self.suspect = self.silent_s > SUSPECT_SHARE * self.limit_s and (self.late or not self.reading)
        else:
            self.suspect = self.late and not self.vouched(now)
        if not self.suspect:
            self.unanswered_since = None

    def vouched(self, now: float) -> bool:
        """Whether a probe has shown of late that it generates, whatever its metrics do."""
        return now - self.vouched_at <= VOUCHED_S

    def stalled(self, slow: bool, now: float) -> bool:
        """Whether it has stalled by `now`; `slow`: whether its machine may be slow instead."""
        if not self.busy:
            # as long as a probe vouches for it, no other was due
            heard_at = max(self.answered[1], self.active_at, self.vouched_at + VOUCHED_S)
            return self.late and not slow and now - heard_at > LATE_S
        if self.unanswered_since is None or now - self.unanswered_since < ANSWER_S:
            return False
        if self.silent_s <= (MAX_STALL_S if slow or self.blamed or not self.warm else self.limit_s):
            return False
        if self.reading:
            return self.polled_at is not None and now - self.polled_at > BUSY_LATE_S
        return self.late or self.frozen or self.silent_s > MAX_STALL_S

    def resume(self, now: float) -> None:
        """Measure all silence from `now`."""
        self.active_at, self._unexplained_s, self.polled_at, self.unanswered_since = now, 0.0, None, None
        if self.answered[1] > -math.inf:
            self.answered = now, now
        for one in self.left:
            one.left_at = now

    def come_back(self, answered_in_s: float, now: float) -> None:
        """Count as healthy again, and as no faster than its answer to the probe."""
        self.resume(now)
        self.ejected_at, self.returned_at, self.refused = None, now, False
        self.gap_s, self._seen_at = answered_in_s, now


class ReplicaHealth:
    """The replicas of all variants, by base URL."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._troubled: set[str] = set()  # ejected, or on their way back
        self._checked_at = 0.0
        self.suspects: set[str] = set()  # as of the last check

    @property
    def troubled(self) -> bool:
        """Whether any replica is suspect, ejected, or on its way back."""
        return bool(self._troubled or self.suspects)

    def _replica(self, url: str) -> _Replica:
        return self._replicas.get(url) or self._replicas.setdefault(url, _Replica(url))

    def begin(self, url: str, now: float, reading_s: float = 0.0, moved: bool = False) -> Exchange:
        """Count a request that is sent to the replica; `end` follows.

        Args:
            url: of the replica.
            now: the present time, s.
            reading_s: predicted time until its prompt is read.
            moved: whether it has left another replica, which may have been silent because of it.
        """
        replica = self._replica(url)
        exchange = Exchange(replica, now, now, now + PREFILL_FACTOR * reading_s, moved)
        replica.exchanges.add(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Count the request as ended."""
        exchange.replica.exchanges.discard(exchange)

    def leave(self, exchange: Exchange, now: float) -> None:
        """Count the request as ended by its client.

        The silence in which it waited goes on if others wait too, and the engine may be reading its prompt still.
        """
        self.end(exchange)
        if exchange.waiting_since < math.inf:
            exchange.left_at = now
            exchange.replica.left.add(exchange)

    def on_poll_sent(self, url: str, now: float) -> None:
        """Note that the metrics of the replica are polled; `on_poll` follows where it answers, `on_refused` where nobody listens."""
        replica = self._replica(url)
        if replica.polled_at is None:
            replica.polled_at = now

    def on_poll(self, url: str, stats: Mapping[str, float], now: float) -> None:
        """Note the answer to a poll.

        Args:
            url: of the replica.
            stats: what its engine reports, with the `tokens` that it has read and written if it counts them, and its CPU time
                `cpu_s`, s, if that tells whether it computes.
            now: the present time, s.
        """
        replica = self._replica(url)
        stats = dict(stats)
        used_s, cpu_s = 0.0, stats.pop("cpu_s", None)
        if cpu_s is not None and replica.cpu_s is not None:
            used_s = cpu_s - replica.cpu_s
        replica.cpu_s, replica.computing = cpu_s, used_s > MIN_BUSY_CORES * (now - replica.answered[1])
        replica.polled_at, replica.refused, replica.answered = None, False, (replica.answered[1], now)
        replica.warm = replica.warm or stats.get("tokens", 0) > 0
        if stats != replica.stats:
            replica.stats, replica.changed_at = stats, now

    def on_refused(self, url: str) -> None:
        """Note that nobody listens there."""
        self._replica(url).refused = True

    def is_late(self, url: str, now: float) -> bool:
        """Whether the replica has not answered a poll in time."""
        polled_at = self._replica(url).polled_at
        return polled_at is not None and now - polled_at >= ANSWER_S

    def vouched(self, urls: Iterable[str], now: float) -> set[str]:
        """Those of `urls` of which a probe has shown of late that they generate, whatever their metrics do."""
        return {url for url in urls if (one := self._replicas.get(url)) and one.ejected_at is None and one.vouched(now)}

    def check(self, predicted_s: Mapping[str, float], now: float) -> list[tuple[str, EjectionCause]]:
        """The replicas to eject, and why.

        Args:
            predicted_s: of every replica that runs, the silence that is predicted while it has work.
        """
        decay = 0.5 ** (max(now - self._checked_at, 0.0) / GAP_HALF_LIFE_S)
        self._checked_at = now
        running = [one for url in predicted_s if (one := self._replicas.get(url)) and one.ejected_at is None]
        for one in running:
            one.observe(predicted_s[one.url], now, decay)
        self.suspects = {one.url for one in running if one.suspect}
        left, found = len(predicted_s) - len(self.ejected(predicted_s)), list[tuple[str, EjectionCause]]()
        for one in sorted(running, key=lambda one: not one.refused):
            slow = left - 1 < MIN_SERVING_SHARE * len(predicted_s) or _slow_together(one, running)
            if one.refused or one.stalled(slow, now):
                found.append((one.url, "unreachable" if one.refused else "stalled"))
                left -= 1
        return found

    def eject(self, url: str, now: float, cause: EjectionCause = "stalled") -> bool:
        """Send nothing more to the replica until a probe succeeds; its requests are interrupted. False if it is ejected already."""
        replica = self._replica(url)
        if replica.ejected_at is not None:
            return False
        replica.ejected_at, replica.returned_at, replica.refused, replica.suspect = now, None, False, False
        replica.answered_late = False
        if not replica.probing:
            replica.probed_at = now
        self._troubled.add(url)
        self.suspects.discard(url)
        for exchange in list(replica.exchanges):
            exchange.stalled = cause == "stalled"
            exchange.interrupt()
        return True

    def evidence(self, url: str) -> str:
        """What the last check saw of a replica that has stalled, for the log."""
        replica = self._replica(url)
        metrics = "late" if replica.late else "frozen" if replica.frozen else "moving"
        return f"silent for {replica.silent_s:.1f} s of {replica.limit_s:.1f} s, metrics {metrics}"

    def forget(self, running: Collection[str], now: float) -> None:
        """Forget replicas that no longer run, and that they were ejected once they have their whole share again."""
        for url in [url for url, one in self._replicas.items() if url not in running and not one.exchanges]:
            del self._replicas[url]
            self._troubled.discard(url)
            self.suspects.discard(url)
        for url in list(self._troubled):
            replica = self._replicas[url]
            if replica.returned_at is not None and now - replica.returned_at > RAMP_S:
                replica.returned_at = None
                self._troubled.discard(url)

    def resume(self, now: float) -> None:
        """Measure all silence from `now`: this process stood still itself."""
        for replica in self._replicas.values():
            replica.resume(now)

    def to_probe(self, now: float) -> list[str]:
        """Replicas that are suspect or ejected and whose next probe is due; `on_probe` follows."""
        due = []
        for url in self._troubled | self.suspects:
            replica = self._replicas[url]
            wanted = replica.ejected_at is not None or replica.suspect
            if wanted and not replica.probing and now - replica.probed_at >= PROBE_EVERY_S:
                replica.probing, replica.probed_at = True, now
                if replica.busy:  # the probe waits for the others, if their clients leave
                    replica.probe = self.begin(url, now)
                replica.unanswered_since = replica.unanswered_since or now
                due.append(url)
        return due

    def on_probe(self, url: str, answered: bool, now: float) -> None:
        """Note the result of a probe: after a good one, an ejected replica gets a share of the requests that grows for `RAMP_S`.

        A late answer may be one to a probe that came while it stood still: another probe tells how fast it is now.
        """
        if (replica := self._replicas.get(url)) is None:
            return
        answered_in_s, replica.probed_at, replica.probing = now - replica.probed_at, now, False
        if replica.probe is not None:
            self.end(replica.probe)
            replica.probe = None
        if replica.ejected_at is None:
            if answered:
                replica.active_at, replica.unanswered_since = now, None
                if answered_in_s <= ANSWER_S:
                    replica.vouched_at = now
        elif answered and (replica.answered_late or answered_in_s <= ANSWER_S):
            replica.come_back(answered_in_s, now)
        elif answered:
            replica.answered_late, replica.probed_at = True, -math.inf
        else:
            replica.answered_late = False

    def ejected(self, urls: Iterable[str]) -> set[str]:
        """Those of `urls` that are ejected."""
        return {url for url in self._troubled.intersection(urls) if self._replicas[url].ejected_at is not None}

    def avoided(self, urls: Iterable[str], now: float, rng: Callable[[], float] = random.random) -> set[str]:
        """Those of `urls` that the next request avoids: suspect and ejected ones, and those on their way back, by chance."""
        urls = set(urls)
        avoided = self.suspects & urls
        for url in self._troubled & urls:
            returned_at = self._replicas[url].returned_at
            if returned_at is None or rng() > (now - returned_at) / RAMP_S:
                avoided.add(url)
        return avoided


def _slow_together(one: _Replica, running: Iterable[_Replica]) -> bool:
    """Whether the others are as silent as `one`: do not answer polls either, or have work and were recently silent for half as long."""
    others = [other for other in running if other is not one]
    if one.late:
        return bool(others) and all(other.late for other in others)
    silences_s = [max(other.silent_s, other.gap_s) for other in others if other.busy and not other.reading]
    return bool(silences_s) and min(silences_s) > SUSPECT_SHARE * one.silent_s
