"""Variants in the catalog: the load that the gateway tracks, prompt prefixes in the engine's cache, and cost."""

import pytest

from benchmarks.lib.sample_catalog import choose, make_live_variant, three_gears
from serve.routing.catalog import BLOCK_CHARS
from serve.routing.prediction import Features, Load


def test_the_load_is_this_gateways_own_and_what_others_had_at_the_last_look():
    live = three_gears()[0].live
    live.on_dispatch(100, 1, 20)
    live.update_from_engines(replicas=1, running=3, waiting=2, kv_usage=0.1)
    assert live.load() == Load(5, 500, 1, prefill_per_token=5), "four of others, taken to be like the own one"
    live.on_dispatch(50)
    assert live.load().requests == 6
    live.on_first_token(100)
    live.on_complete()
    assert live.load().requests == 5
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0)
    assert live.load() == Load(1, 50, 1, prefill_per_token=5), "the engines have not seen the own one yet"


def test_the_prompts_that_are_read_beside_each_token_follow_the_usual_lengths():
    live = three_gears()[0].live
    assert live.load().prefill_per_token == 0, "nothing is known yet"
    for _ in range(200):
        live.on_dispatch(100, 1, 50)
    assert live.load().prefill_per_token == pytest.approx(2)
    for _ in range(200):
        live.on_dispatch(10, 1, 50)
    assert live.load().prefill_per_token == pytest.approx(0.2, rel=0.01), "the lengths of late count"


def test_what_a_variant_has_in_its_cache_need_not_be_read_again():
    variant = three_gears()[0]
    live, long = variant.live, Features(1000, 10, blocks=range(9))
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0, kv_tokens=8000)
    assert live.load(0, long).cached_tokens == 0
    live.remember_prefix(Features(800, 10, blocks=range(7)))
    assert live.load(0, long).cached_tokens == 700, "seven of its ten blocks, the last is not whole"
    assert live.load(0, Features(1000, 10, blocks=(77, 1, 2))).cached_tokens == 0, "what comes after another beginning"
    live.update_from_engines(replicas=2, running=0, waiting=0, kv_usage=0.0)
    assert live.load(0, long).cached_tokens == 350, "one of the two has it"
    chosen = choose([variant], long).chosen
    assert chosen.public()["cached_tokens"] == 350 and chosen.uncached_tokens == 650
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0)
    assert live.load(0, long).cached_tokens == 0, "a replica went, and its cache with it"


def test_a_cache_forgets_what_was_read_longest_ago():
    live = three_gears()[0].live
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0, kv_tokens=4 * BLOCK_CHARS // 4)
    live.remember_prefix(Features(100, 1, blocks=[1, 2]))
    live.remember_prefix(Features(100, 1, blocks=[3, 4]))
    live.remember_prefix(Features(100, 1, blocks=[1, 2]))
    live.remember_prefix(Features(100, 1, blocks=[5]))
    known = {block for block in range(9) if live.load(0, Features(100, 1, blocks=[block])).cached_tokens}
    assert known == {1, 2, 4, 5}


def test_gateways_that_look_at_the_same_numbers_do_not_all_run_to_one_variant():
    live = three_gears()[0].live
    live.peers = 3
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0)
    live.on_dispatch(10)
    assert live.load().requests == 4, "each of the others has sent as many since the last look"
    live.update_from_engines(replicas=1, running=1, waiting=0, kv_usage=0.0)
    assert live.load().requests == 1, "now it is known that they have not"


def test_cost_is_the_share_of_a_fully_used_machine():
    variant = make_live_variant("full", price=0.36)
    assert variant.cost_usd(1000, 0) == pytest.approx(0.36 / 3600)  # prefill: 1000 tokens a second
    assert variant.cost_usd(0, 200) == pytest.approx(2 * 0.36 / 3600)  # decode: 100 tokens a second
    assert choose([variant], Features(1000, 200)).chosen.cost_usd == pytest.approx(3 * 0.36 / 3600)
