"""The prefix cache of a simulated engine, like vLLM's: blocks of a fixed size, least recently used first to go, a prompt's last before its first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 128  # vLLM's on CPUs


@dataclass(slots=True)
class PrefixCache:
    """Blocks in a cache of `capacity_tokens`."""

    capacity_tokens: int
    _blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def tokens(self, blocks: Sequence[int]) -> int:
        """How many tokens of a prompt of `blocks` are cached."""
        hits = 0
        while hits < len(blocks) and blocks[hits] in self._blocks:
            hits += 1
        return hits * BLOCK_TOKENS

    def add(self, blocks: Sequence[int]) -> None:
        """Store a text of `blocks`."""
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) * BLOCK_TOKENS > self.capacity_tokens:
            self._blocks.popitem(last=False)
