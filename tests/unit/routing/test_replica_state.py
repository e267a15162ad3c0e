"""The choice of a replica within a variant, by cached prefix and load together, and what a gateway knows of each."""

import pytest

from benchmarks.lib.sample_catalog import choose, make_live_variant, make_profile
from serve.budget import Budget
from serve.routing.catalog import Variant
from serve.routing.policy import WithinBudget
from serve.routing.prediction import Features
from serve.routing.replica_state import BLOCK_CHARS, ReplicaState
from serve.routing.router import Router

ONE, TWO = "http://10.0.0.1:30000", "http://10.0.0.2:30000"
LONG = Features(1000, 11, blocks=range(9))
SHORT = Features(10, 11)


def with_replicas(*urls: str, **changes: object) -> Variant:
    """A variant with a replica at each of `urls`; a prompt token takes 1 ms, a decoded one 20 ms and 2 ms for each other sequence."""
    profile = make_profile([(100, 1, 100), (1000, 1, 1000)], [(1, 20), (32, 82)])
    made = make_live_variant(profile=profile, max_running=32, max_model_len=4096, replicas=len(urls), **changes)  # type: ignore[arg-type]
    made.live.update_from_engines(len(urls), 0, 0, 0.0, kv_tokens=100_000)
    made.live.update_replicas(dict.fromkeys(urls, 0))
    return made


def test_a_continued_chat_goes_where_its_prefix_is_cached_and_is_predicted_so():
    variant = with_replicas(ONE, TWO)
    cold = choose([variant], LONG)
    assert cold.chosen.load.cached_tokens == 0
    variant.live.remember_prefix(LONG.blocks, TWO)
    warm = choose([variant], LONG)
    assert (warm.chosen.load.replica, warm.chosen.load.cached_tokens) == (TWO, 900)
    assert warm.chosen.uncached_tokens == 100
    assert [one.chosen.prediction.expected.ttft_ms for one in (cold, warm)] == pytest.approx([1000, 100])
    assert warm.public()["candidates"][0]["replica"] == 2, "its number, as addresses are not for clients"
    assert ONE not in str(warm.public()) and TWO not in str(warm.public())


def test_other_prompts_go_to_the_replica_with_less_to_do():
    variant = with_replicas(ONE, TWO)
    variant.live.on_dispatch(100, 1, 10, ONE)
    assert variant.load(SHORT).replica == TWO
    variant.live.on_dispatch(3000, 1, 10, TWO)
    assert variant.load(SHORT).replica == ONE, "a long prompt is ahead at the other, though each has one request"
    variant.live.on_first_token(3000, TWO)
    variant.live.on_dispatch(0, 2, 10, ONE)
    assert variant.load(SHORT).replica == TWO


def test_a_replica_that_is_hot_loses_even_what_it_has_cached():
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.on_dispatch(300, 1, 10, TWO)
    assert variant.load(LONG).replica == TWO, "300 tokens are ahead, but 900 would be read again"
    variant.live.on_dispatch(4000, 1, 10, TWO)
    load = variant.load(LONG)
    assert (load.replica, load.cached_tokens) == (ONE, 0)


def test_what_is_read_again_counts_more_the_more_sequences_it_delays():
    """Otherwise chats leave their replica for every moment in which another has less to do, and all are read again and again."""
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.on_dispatch(1200, 1, 10, TWO)
    assert variant.load(LONG).replica == TWO, "with half a sequence at each on average"
    idle = ReplicaState()
    assert idle.cached_tokens(LONG) == 0
    variant.live.on_first_token(1200, TWO)
    variant.live.on_dispatch(950, 1, 10, TWO)
    for _ in range(6):
        variant.live.on_dispatch(0, 1, 10, ONE)
        variant.live.on_dispatch(0, 1, 10, TWO)
    variant.live.on_complete(1, ONE)
    assert variant.load(LONG).replica == TWO


def test_of_equals_the_one_with_the_emptier_cache_is_chosen():
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(range(100, 103), ONE)
    assert variant.load(SHORT).replica == TWO
    variant.live.remember_prefix(range(200, 205), TWO)
    assert variant.load(SHORT).replica == ONE


def test_the_prediction_is_for_the_replica_that_is_left_after_a_failure():
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.on_dispatch(400, 3, 10, ONE)
    router = Router(WithinBudget(explore=0))
    again = router.decide([variant], Budget(), LONG, failed={TWO}).chosen
    assert (again.load.replica, again.load.cached_tokens, again.load.here, again.load.prefill_here) == (ONE, 0, 3, 400)
    first = router.decide([variant], Budget(), LONG).chosen
    assert again.prediction.expected.ttft_ms > first.prediction.expected.ttft_ms + 1000
    neither = router.decide([variant], Budget(), LONG, failed={ONE, TWO}).chosen
    assert neither.load.replica == "", "one that has started since the last refresh may be there"


def test_a_replica_that_does_not_answer_is_left_until_it_does():
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.on_unreachable(TWO)
    assert variant.load(LONG).replica == ONE, "a broken one is idle and would get everything"
    variant.live.update_replicas({ONE: 0, TWO: None})
    assert variant.load(LONG).replica == ONE
    variant.live.update_replicas({ONE: None, TWO: None})
    assert variant.load(LONG).replica == TWO, "none answers: busy, perhaps"
    variant.live.update_replicas({ONE: 0, TWO: 0})
    assert variant.load(LONG).replica == TWO


def test_replicas_come_and_go():
    variant = with_replicas(ONE)
    variant.live.on_dispatch(10, 1, 10, ONE)
    variant.live.update_replicas({ONE: 1, TWO: 0})
    assert variant.load(SHORT).replica == TWO
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.update_replicas({ONE: 1})
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.update_replicas({ONE: 1, TWO: 0})
    assert variant.load(LONG).cached_tokens == 0, "what it had cached is lost with it"
    variant.live.on_complete(1, ONE)
    variant.live.on_complete(1, TWO)
    assert [state.in_flight for state in variant.live.by_replica.values()] == [0, 0], "of a replica that came back"


def test_requests_of_other_gateways_count_at_their_replica():
    variant = with_replicas(ONE, TWO)
    variant.live.peers = 2
    variant.live.on_dispatch(10, 1, 10, ONE)
    assert variant.load(SHORT, avoid={TWO}).here == 3, "each of the others is taken to have sent one there too"
    variant.live.update_replicas({ONE: 1, TWO: 5})
    assert variant.load(SHORT, avoid={TWO}).here == 1
    assert variant.load(SHORT, avoid={ONE}).here == 5
    before = variant.live.in_flight_by_replica
    variant.live.on_complete(1, ONE)
    variant.live.update_replicas({ONE: 1, TWO: 0}, before)
    assert variant.load(SHORT, avoid={TWO}).here == 0, "what ended while the engine was polled is not another gateway's"


def test_a_replica_with_a_place_is_preferred_to_the_one_with_the_prefix():
    variant = with_replicas(ONE, TWO)
    variant.live.remember_prefix(LONG.blocks, TWO)
    variant.live.on_dispatch(0, 4, 10, TWO)
    assert variant.load(LONG).replica == TWO
    places = variant.latency.places(variant.live.load(), 24.0)
    assert 0 < places <= 4
    router = Router(WithinBudget(explore=0))
    chosen = router.decide([variant], Budget(), LONG, step_limit_ms=24.0).chosen
    assert (chosen.load.replica, chosen.harm) == (ONE, 0)


def test_harm_is_that_of_the_batch_which_the_request_joins():
    variant = with_replicas(ONE)
    variant.live.on_dispatch(0, 4, 10, ONE)
    variant.live.update_from_engines(2, 10, 0, 0.0)
    variant.live.update_replicas({ONE: 4, TWO: 6})
    chosen = Router(WithinBudget(explore=0)).decide([variant], Budget(), SHORT, step_limit_ms=24.0).chosen
    assert (chosen.load.replica, chosen.harm) == (ONE, 4)


def test_a_place_that_is_taken_counts_at_its_replica():
    variant = with_replicas(ONE, TWO)
    variant.live.take_place(2, ONE)
    assert variant.load(SHORT, avoid={TWO}).here == 2
    variant.live.on_complete(2, ONE)
    assert variant.load(SHORT, avoid={TWO}).here == 0


def test_a_cache_forgets_what_was_read_longest_ago_from_the_end():
    state = ReplicaState()

    def read(*blocks: int) -> None:
        state.remember_prefix(blocks, kv_tokens=4 * BLOCK_CHARS // 4)

    def cached(*blocks: int) -> int:
        return state.cached_tokens(Features(100 * (len(blocks) + 1), 1, blocks=blocks)) // 100

    read(1, 2)
    read(3, 4)
    read(1, 2)
    read(5)
    assert (cached(1, 2), cached(3, 4), cached(5)) == (2, 1, 1), "as vLLM frees the last block of a text first"
    assert cached(9, 91, 92) == 0, "what comes after another beginning"
    assert state.cached_blocks == 4


@pytest.mark.parametrize("known", range(10))
def test_the_cached_part_is_found_whatever_its_length(known: int):
    state = ReplicaState()
    state.remember_prefix(range(known), kv_tokens=10_000)
    assert state.cached_tokens(LONG) == 100 * min(known, 9)
