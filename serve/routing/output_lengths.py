"""Output length prediction: how many tokens an answer will have, learned from those before it."""

import itertools
import math
from collections import OrderedDict
from typing import Any

from serve.routing.online_estimators import Quantiles, normal_start

_KEPT_LENGTHS = 500  # tenants and profiles whose output lengths a new gateway begins with


class OutputLengths:
    """Output length prediction: the running median for the same tenant and profile, else over all requests.

    Bounded: the least recently seen pair is evicted first.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        self._seen: OrderedDict[tuple[str, str], Quantiles] = OrderedDict()
        self._all: Quantiles | None = None
        self._max_entries = max_entries

    def expect(self, tenant: str, profile: str, max_tokens: int) -> int:
        """Expected output tokens, at most `max_tokens`; `max_tokens` before the first observation."""
        seen = self._seen.get((tenant, profile)) or self._all
        if seen is None:
            return max_tokens
        return max(1, min(max_tokens, round(math.exp(seen.values[0]))))

    def state(self) -> list[object]:
        """What was learned of all requests, and of the tenants and profiles seen last, for `restore`."""
        newest = itertools.islice(reversed(self._seen.items()), _KEPT_LENGTHS)
        return [self._all and self._all.state(), [[*key, lengths.state()] for key, lengths in newest]]

    def restore(self, state: Any) -> None:
        """Take over the state of another gateway; what was learned here already stays."""
        overall, seen = state
        if overall is not None and self._all is None:
            self._all = _restored(overall)
        for tenant, profile, lengths in reversed(seen):
            self._seen.setdefault((tenant, profile), _restored(lengths))

    def observe(self, tenant: str, profile: str, tokens: int) -> None:
        """Update with the length of an output that ended by itself or at its limit."""
        length = math.log(max(tokens, 1))
        self._all = _updated(self._all, length)
        self._seen[tenant, profile] = _updated(self._seen.pop((tenant, profile), None), length)
        if len(self._seen) > self._max_entries:
            self._seen.popitem(last=False)


def _restored(state: Any) -> Quantiles:
    lengths = Quantiles(normal_start(0.0, 1.0))
    lengths.restore(state)
    return lengths


def _updated(lengths: Quantiles | None, length: float) -> Quantiles:
    lengths = lengths or Quantiles(normal_start(length, length + 1))
    lengths.observe(length)
    return lengths
