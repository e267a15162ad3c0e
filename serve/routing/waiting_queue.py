"""The requests that wait in a gateway, in the order in which they should start.

Adding, removing and finding the first take logarithmic time, but for moves and sums of lists in C.
"""

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from serve.budget import Budget, remaining
from serve.errors import RequestError
from serve.routing.fair_shares import Flow, Tenant
from serve.routing.prediction import Features
from serve.routing.router import Decision

_USUAL_PROMPT = 128  # tokens up to which prompts count as equally long

_Lane = tuple[tuple[object, ...], str]  # kind, tenant


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that has no decision yet; `decided` is called once with it. Times are seconds of the caller's clock."""

    budget: Budget
    features: Features
    arrived: float
    decided: Callable[[Decision | RequestError], None]
    pinned: str | None = None
    failed: Collection[str] = ()
    profile: str = ""
    tenant: str = ""
    weight: float = 1.0  # of the tenant
    counted: bool = False  # whether an earlier attempt counts as its work already
    start_by: float = math.inf  # the latest start that is in time; once that has passed, `gives_up`
    gives_up: float = math.inf  # when it is refused, or starts whatever it does to others
    variant: str = ""  # that it waits for
    work_ms: float = 0.0
    flow: Flow = field(default_factory=Flow)
    rank: tuple[bool, float, int] = (False, math.inf, 0)  # tenants within their share first, then by `start_by`
    queued: bool = False
    holds: bool = False  # whether others must not start before it any more, see `FreePlaces.holds`
    kind: tuple[object, ...] = ()  # what requests have in common that have a place at the same time, or none

    def left(self, now: float) -> Budget:
        """The rest of its budget."""
        return remaining(self.budget, now - self.arrived)

    @property
    def size(self) -> tuple[int, int]:
        """Sequences, and about how long the prompt is: the larger need more room at an engine."""
        return self.features.sequences, max(self.features.prompt_tokens, _USUAL_PROMPT).bit_length()

    @property
    def is_large(self) -> bool:
        """Whether it may need more room than one request of usual length."""
        return self.size > (1, _USUAL_PROMPT.bit_length())

    def is_larger(self, other: "Waiting") -> bool:
        """Whether it may need more room than `other` does."""
        sequences, length = other.size
        return self.size[0] > sequences or self.size[1] > length

    @property
    def rejects(self) -> bool:
        """Whether it would rather be refused than late."""
        return self.budget.on_no_candidate == "reject"


@dataclass(slots=True)
class _Line:
    """Those that wait for one variant, by rank: three lists in step, for binary search and sums."""

    ranks: list[tuple[bool, float, int]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    work_ms: list[float] = field(default_factory=list)


_NONE = _Line()


class WaitingQueue:
    """Waiting requests by rank: in a line for each variant, and in lanes, one for each tenant's requests of a kind.

    The first of a lane speaks for all.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._lanes: dict[_Lane, list[Waiting]] = {}
        self._due: list[tuple[float, int, Waiting]] = []
        self._numbers = itertools.count()
        self._count = 0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return self._count

    def rank(self, waiting: Waiting) -> None:
        """Give it its place in the order, as the last of those with the same."""
        waiting.rank = waiting.flow.tenant.over, waiting.start_by, next(self._numbers)

    def add(self, waiting: Waiting) -> None:
        """Let it wait, at its rank."""
        waiting.queued, waiting.kind = True, _kind(waiting)
        self._count += 1
        waiting.flow.queued_ms += waiting.work_ms
        line = self._lines.setdefault(waiting.variant, _Line())
        at = bisect_left(line.ranks, waiting.rank)
        line.ranks.insert(at, waiting.rank)
        line.waiting.insert(at, waiting)
        line.work_ms.insert(at, waiting.work_ms)
        insort(self._lanes.setdefault(_lane(waiting), []), waiting, key=_rank)
        heapq.heappush(self._due, (min(waiting.start_by, waiting.gives_up), waiting.rank[2], waiting))

    def remove(self, waiting: Waiting) -> None:
        """Take out one that waits."""
        waiting.queued = False
        self._count -= 1
        left_ms = waiting.flow.queued_ms - waiting.work_ms
        waiting.flow.queued_ms = left_ms if left_ms > 1e-6 else 0.0  # less is what rounding leaves
        line = self._lines[waiting.variant]
        at = bisect_left(line.ranks, waiting.rank)
        del line.ranks[at], line.waiting[at], line.work_ms[at]
        if not line.ranks:
            del self._lines[waiting.variant]
        lane = self._lanes[_lane(waiting)]
        del lane[bisect_left(lane, waiting.rank, key=_rank)]
        if not lane:
            del self._lanes[_lane(waiting)]
        if len(self._due) > 2 * self._count + 16:  # entries of those that have gone, with their clients
            self._due = [entry for entry in self._due if entry[2].queued]
            heapq.heapify(self._due)

    def due(self, now: float) -> Waiting | None:
        """The first whose time is over, if there is one. Those that are late and may be go behind those that can be in time."""
        while self._due and (self._due[0][0] < now or not self._due[0][2].queued):
            first = self._due[0][2]
            if first.queued and first.start_by >= first.gives_up:
                return first
            heapq.heappop(self._due)
            if first.queued:
                self.remove(first)
                first.start_by, first.holds = first.gives_up, False
                self.rank(first)
                self.add(first)
        return None

    def ahead_ms(self, waiting: Waiting) -> float:
        """Work that waits for the same variant and goes first."""
        line = self._lines.get(waiting.variant, _NONE)
        return sum(line.work_ms[: bisect_left(line.ranks, waiting.rank)])

    def line(self, variant: str) -> list[Waiting]:
        """Those that wait for `variant`, by rank."""
        return self._lines.get(variant, _NONE).waiting

    def heads(self) -> Iterator[Waiting]:
        """The first of each lane, by rank; when it was removed meanwhile, the next of its lane after it."""
        heap = [(lane[0].rank, key) for key, lane in self._lanes.items()]
        heapq.heapify(heap)
        while heap:
            _, key = heap[0]
            head = self._lanes[key][0]
            yield head
            if not head.queued and (lane := self._lanes.get(key)):
                heapq.heapreplace(heap, (lane[0].rank, key))
            else:
                heapq.heappop(heap)

    def last_of(self, tenant: Tenant) -> Waiting | None:
        """The last in the order of the requests of `tenant`; takes time linear in the requests that wait."""
        its = (one for line in self._lines.values() for one in line.waiting if one.flow.tenant is tenant)
        return max(its, key=_rank, default=None)


def _rank(waiting: Waiting) -> tuple[bool, float, int]:
    return waiting.rank


def _lane(waiting: Waiting) -> _Lane:
    return waiting.kind, waiting.tenant


def _kind(waiting: Waiting) -> tuple[object, ...]:
    budget = waiting.budget
    return (
        waiting.variant, budget.min_quality, budget.max_cost, budget.tpot_ms, waiting.rejects, frozenset(waiting.failed),
        waiting.size,
    )  # fmt: skip
