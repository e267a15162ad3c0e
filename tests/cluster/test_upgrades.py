"""Upgrades of the rendered chart on a real Ray cluster of several nodes, with the real model, under constant load.

`benchmarks.cluster.upgrades` has the steps; the tests check their outcome. Runs before the shared platform is started: both do not
fit into the memory of a small machine at once.
"""

from collections.abc import Iterator

import pytest

from benchmarks.cluster.constant_load import KINDS
from benchmarks.cluster.ray_nodes import possible
from benchmarks.cluster.upgrades import Rehearsal, rehearsal

pytestmark = pytest.mark.platform
STEPS = [
    "nothing, to compare with",
    "remove the node of full's engine",
    "upgrade to a new cluster, then the old one goes",
]


@pytest.fixture(scope="module")
def rehearsed() -> Iterator[Rehearsal]:
    if reason := possible():
        pytest.skip(reason)
    with rehearsal(short=True) as made:
        with made.load:
            made.changes(short=True)
        yield made


def test_every_change_was_made(rehearsed: Rehearsal):
    assert [what for _, _, what in rehearsed.events] == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_no_request_failed(rehearsed: Rehearsal, step: str):
    (row,) = [row for row in rehearsed.summary() if row["step"] == step]
    errors = [
        f"{record.began_s:.0f} s {record.kind}: {record.error}" for record in rehearsed.load.records if record.error
    ]
    assert {kind: counts["failed"] for kind, counts in row["kinds"].items()} == {kind.name: 0 for kind in KINDS}, errors
    assert sum(counts["requests"] for counts in row["kinds"].values()) > 0, "there was load"


def test_what_helm_test_runs_is_content(rehearsed: Rehearsal):
    assert "ok: smollm2-135m answers" in rehearsed.helm_test_output


def test_no_replica_ran_on_the_head(rehearsed: Rehearsal):
    places = {place for where in rehearsed.seen for nodes in where.values() for place in nodes}
    assert "head" not in places
    assert places <= {"gw1", "en1", "en3"}
    for where in rehearsed.seen:
        assert all(place.startswith("gw") for place in where.get("gateway", []))
        assert all(place.startswith("en") for name, nodes in where.items() if name != "gateway" for place in nodes)


def test_the_head_of_the_old_cluster_outlasts_its_workers(rehearsed: Rehearsal):
    assert rehearsed.old.left[-1] == "head"
    assert set(rehearsed.old.left) == {"head", "gw1", "en1", "en3"}


def test_rays_own_ports_answer_only_to_the_token(rehearsed: Rehearsal):
    assert rehearsed.without_token == 401
