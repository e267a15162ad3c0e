"""Several gateways: each learns where the others had prompts read."""

import pytest

from benchmarks.lib.sample_catalog import make_live_variant
from serve.routing.catalog import Variant
from serve.routing.prediction import Features
from serve.routing.prefix_exchange import PrefixExchange

ONE, TWO = "http://10.0.0.1:30000", "http://10.0.0.2:30000"
CHAT = Features(400, 10, blocks=(11, 12, 13))


class Gateway:
    """One gateway with the variant `full` at two replicas."""

    def __init__(self) -> None:
        self.variant: Variant = make_live_variant("full", replicas=2)
        self.variant.live.peers = 1
        self.variant.live.update_from_engines(2, 0, 0, 0.0, kv_tokens=10_000)
        self.variant.live.update_replicas({ONE: 0, TWO: 0})
        self.exchange = PrefixExchange()

    def message(self) -> bytes:
        return self.exchange.message([self.variant])

    def receive(self, message: bytes) -> set[str]:
        return self.exchange.receive({"other": message}, {"full": self.variant})

    @property
    def cached(self) -> int:
        return self.variant.load(CHAT, avoid={ONE}).cached_tokens


def test_a_chat_is_found_where_another_gateway_had_it_read():
    mine, other = Gateway(), Gateway()
    other.variant.live.remember_prefix(CHAT.blocks, TWO)
    assert mine.receive(other.message()) == set()
    assert mine.variant.load(CHAT).replica == TWO and mine.cached == 300
    assert mine.variant.live.take_read_prefixes() == [], "what is learned is not passed on"


def test_a_message_that_was_missed_is_made_up_for_and_one_that_was_seen_is_not_learned_twice():
    mine, other = Gateway(), Gateway()
    other.variant.live.remember_prefix(CHAT.blocks, TWO)
    other.message()
    second = other.message()
    mine.receive(second)
    assert mine.cached == 300
    mine.variant.live.update_replicas({ONE: 0})
    mine.variant.live.update_replicas({ONE: 0, TWO: 0})
    assert mine.receive(second) == {"other"}, "its sender may have stopped"
    mine.receive(other.message())
    assert mine.cached == 0


def test_messages_do_not_grow():
    other = Gateway()
    other.variant.live.remember_prefix(CHAT.blocks, TWO)
    empty = len(Gateway().message())
    sizes = [len(other.message()) for _ in range(5)]
    assert sizes[0] > empty and sizes[-1] == empty
    for number in range(5000):
        other.variant.live.remember_prefix((number,), TWO)
    assert len(other.variant.live.take_read_prefixes()) == 1000


def test_variants_and_replicas_that_are_not_known_here_are_passed_over():
    mine, other = Gateway(), Gateway()
    other.variant.live.remember_prefix(CHAT.blocks, TWO)
    message = other.message()
    mine.variant.live.update_replicas({ONE: 0})
    mine.receive(message)
    assert mine.exchange.receive({"another": message}, {}) == set()


def test_a_single_gateway_keeps_nothing_for_others():
    alone = Gateway()
    alone.variant.live.peers = 0
    alone.variant.live.remember_prefix(CHAT.blocks, TWO)
    assert alone.variant.live.take_read_prefixes() == []


def test_a_malformed_message_is_an_error():
    with pytest.raises(ValueError):
        Gateway().receive(b"{")
