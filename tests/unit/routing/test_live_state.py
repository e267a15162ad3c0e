"""Live state: the load that the gateway tracks, its own and what others had."""

import pytest

from benchmarks.lib.sample_catalog import three_gears
from serve.routing.prediction import Load


def test_the_load_is_this_gateways_own_and_what_others_had_at_the_last_poll():
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


def test_gateways_that_look_at_the_same_numbers_do_not_all_run_to_one_variant():
    live = three_gears()[0].live
    live.peers = 3
    live.update_from_engines(replicas=1, running=0, waiting=0, kv_usage=0.0)
    live.on_dispatch(10)
    assert live.load().requests == 4, "each of the others has sent as many since the last look"
    live.update_from_engines(replicas=1, running=1, waiting=0, kv_usage=0.0)
    assert live.load().requests == 1, "now it is known that they have not"
