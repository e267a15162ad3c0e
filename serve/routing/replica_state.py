"""Replicas of one variant as a gateway knows them, and the choice of one for a request: by cached prefix and load together."""

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serve.routing.prediction import Features, LatencyModel, Load

BLOCK_CHARS = 512  # of a prompt's text: about one block of the engine's prefix cache
_CHARS_PER_TOKEN = 4


@dataclass(slots=True)
class ReplicaState:
    """Load and prefix cache of one replica. This gateway's own requests are counted exactly, see `LiveState`."""

    in_flight: int = 0  # sequences of this gateway's requests
    pending_prefill_tokens: int = 0  # of this gateway's requests
    remote_in_flight: int = 0  # sequences of other gateways, at the last refresh
    dispatched_since_refresh: int = 0  # sequences of this gateway's requests
    answers: bool = True  # whether its engine answered when it was asked last
    silent: bool = False  # for longer than predicted
    _blocks: OrderedDict[int, None] = field(
        default_factory=OrderedDict
    )  # of read prompts, the next to be evicted first

    @property
    def cached_blocks(self) -> int:
        """Number of blocks that its prefix cache is assumed to hold."""
        return len(self._blocks)

    def cached_tokens(self, features: Features) -> int:
        """Expected number of prompt tokens in its prefix cache."""
        blocks, known = features.blocks, self._blocks
        if not blocks or not known:
            return 0
        low, high = 0, len(blocks)
        while low < high:  # a block is evicted before those that it follows
            middle = (low + high) // 2
            if blocks[middle] in known:
                low = middle + 1
            else:
                high = middle
        return features.prompt_tokens * low // (len(blocks) + 1)

    def remember_prefix(self, blocks: Sequence[int], kv_tokens: int) -> None:
        """Add a prompt that was read to a cache of `kv_tokens`; the least recently used blocks are evicted, the last of a prompt first."""
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        max_blocks = kv_tokens * _CHARS_PER_TOKEN // BLOCK_CHARS
        while len(self._blocks) > max_blocks:
            self._blocks.popitem(last=False)


class Chosen(NamedTuple):
    """The replica for a request: base URL, sequences in flight there, prompt tokens to be read there, cached prompt tokens."""

    replica: str
    requests: float
    pending_prefill_tokens: float
    cached_tokens: int


def choose(
    replicas: Mapping[str, ReplicaState],
    features: Features,
    load: Load,
    latency: LatencyModel,
    peers: int = 0,
    places: float = math.inf,
    avoid: Collection[str] = (),
) -> Chosen | None:
    """The replica where a request of `features` costs least time, its own and that of others; None where all are in `avoid`.

    Its own time is that of reading the prompts ahead and what is not cached of its prompt, and of its tokens in the batch there.
    What is not cached, and is read again, takes that time from the running sequences too: as many as a replica has on average,
    wherever it is read, so that a replica which is idle for a moment does not take over what another one has cached.
    Replicas that run `places` sequences already are chosen only where all do, those that do not answer or are silent where none
    does. Of equals, the one with the fewest cached blocks is chosen.

    Args:
        load: of the whole variant; what its requests are like.
        peers: gateways that are taken to have dispatched as much as this one since the last refresh.
    """
    best: Chosen | None = None
    lowest: tuple[bool, bool, float, int] | None = None
    each_pending = load.pending_prefill_tokens / load.requests if load.requests else 0.0
    delayed = 1 + load.requests / (load.replicas or 1)
    decodes = Load(colocated_busy_variants=load.colocated_busy_variants)
    for name, state in replicas.items():
        if name in avoid:
            continue
        remote = state.remote_in_flight + state.dispatched_since_refresh * peers
        requests = state.in_flight + remote
        pending = state.pending_prefill_tokens + remote * each_pending
        cached = state.cached_tokens(features)
        after = requests + features.sequences
        read_ms = (pending + (features.prompt_tokens - cached) * delayed) * latency.ms_per_prefill_token
        rounds = 1 + max(
            after / latency.max_running - 1, 0.0
        )  # of the batch, until the last of its sequences is complete
        cost_ms = read_ms + rounds * features.output_tokens * latency.step_ms(decodes, after)
        rank = (state.silent or not state.answers, after > places, cost_ms, state.cached_blocks)
        if lowest is None or rank < lowest:
            best, lowest = Chosen(name, requests, pending, cached), rank
    return best
