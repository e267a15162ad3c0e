"""Output length prediction: the median of the same tenant and profile, bounded, and handed on to other gateways."""

import math
import random

import pytest

from serve.routing.output_lengths import OutputLengths


def test_an_answers_length_is_that_of_those_before_it():
    lengths, drawn = OutputLengths(max_entries=2), random.Random(4)
    assert lengths.expect("a", "fast", 256) == 256, "nothing is known yet"
    for _ in range(300):
        lengths.observe("a", "fast", round(drawn.lognormvariate(math.log(40), 0.3)))
    assert lengths.expect("a", "fast", 256) == pytest.approx(40, rel=0.2)
    assert lengths.expect("a", "fast", 10) == 10
    lengths.observe("b", "fast", 7)
    lengths.observe("c", "fast", 7)
    assert lengths.expect("b", "fast", 256) == 7
    forgotten, stranger = lengths.expect("a", "fast", 256), lengths.expect("z", "fast", 256)
    assert forgotten == stranger == pytest.approx(40, rel=0.2), (
        "the one seen longest ago is as good as never seen: all's"
    )


def test_output_lengths_seen_last_are_handed_on_and_those_known_stay():
    before, after = OutputLengths(), OutputLengths()
    for number in range(600):
        before.observe(f"tenant {number}", "best", 7)
    after.observe("tenant 599", "best", 1000)
    after.restore(before.state())
    assert after.expect("tenant 598", "best", 5000) < 15
    assert after.expect("tenant 599", "best", 5000) > 500
    assert after.expect("tenant 0", "best", 5000) > 500, "it is as good as unknown: what is known of all here"


def test_of_output_lengths_that_were_handed_on_the_oldest_is_forgotten_first():
    before, after = OutputLengths(), OutputLengths(max_entries=2)
    for tenant, tokens in (("old", 7), ("new", 1000)):
        before.observe(tenant, "best", tokens)
    after.restore(before.state())
    after.observe("other", "best", 7)
    assert after.expect("new", "best", 5000) > 500
    assert after.expect("old", "best", 5000) == after.expect("unknown", "best", 5000)
