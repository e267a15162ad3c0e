"""Prefix caches known to several gateways: each tells the others which prompts were read at which replica.

A chat's turns reach any gateway. One that does not know where the turns before were read would have the whole chat read again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from serve.routing.catalog import Variant

_REPEATED = 3  # messages that each prompt is part of: gateways may miss one


class PrefixExchange:
    """Of one gateway: its messages, and what it has seen of others'."""

    def __init__(self) -> None:
        self._number = 0
        self._recent: list[
            tuple[int, str, str, list[int]]
        ] = []  # number of its first message, variant, replica, blocks
        self._seen: dict[str, int] = {}  # number of the newest message, by sender

    def message(self, variants: Iterable[Variant]) -> bytes:
        """The next message to the other gateways: prompts read since the last ones."""
        self._number += 1
        self._recent = [one for one in self._recent if one[0] > self._number - _REPEATED]
        for variant in variants:
            for replica, blocks in variant.live.take_read_prefixes():
                self._recent.append((self._number, variant.name, replica, list(blocks)))
        return orjson.dumps([self._number, self._recent])

    def receive(self, messages: Mapping[str, bytes], variants: Mapping[str, Variant]) -> set[str]:
        """Remember the prompts in `messages`, by sender; returns the senders whose message is no new one.

        Raises:
            ValueError: a message is malformed.
        """
        silent: set[str] = set()
        for sender, message in messages.items():
            number, prefixes = orjson.loads(message)
            last = self._seen.get(sender, 0)
            if number == last:
                silent.add(sender)
            self._learn(last, prefixes, variants)
            self._seen[sender] = number
        self._seen = {sender: number for sender, number in self._seen.items() if sender in messages}
        return silent

    def _learn(self, last: int, prefixes: Any, variants: Mapping[str, Variant]) -> None:
        for number, name, replica, blocks in prefixes:
            if number > last and (variant := variants.get(name)) is not None:
                variant.live.learn_prefix(blocks, replica)
