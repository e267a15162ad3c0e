"""Chats at replicas: the simulated caches, the baselines' rules, and that the simulator and a live run measure the same things."""

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.lib.sample_catalog import make_live_variant
from benchmarks.reporting import replica_tables
from benchmarks.routing import replicas
from benchmarks.routing.chats import LONGEST, Chat, Turn, chats, chats_per_s
from benchmarks.routing.live_replicas import serve
from benchmarks.routing.prefix_cache import PrefixCache
from benchmarks.routing.replica_choices import CHOICES, OURS, Arriving
from benchmarks.routing.simulate import catalog
from benchmarks.routing.simulated_replicas import Cell, simulate
from serve.routing.prediction import Features
from tests.support.http_server import serving

QUEUES = {"a": 5, "b": 0, "c": 3}


def arriving(chat: int = 0, blocks: tuple[int, ...] = (), queues: dict[str, int] | None = None) -> Arriving:
    return Arriving(chat, Features(100, 10, blocks), make_live_variant("full"), queues or QUEUES)


def test_a_cache_holds_the_beginnings_of_what_was_used_last():
    cache = PrefixCache(capacity_tokens=4 * 128)
    cache.add((1, 2, 3))
    cache.add((4, 5))
    assert [cache.tokens(text) for text in ((1, 2, 3), (1, 2, 9), (4, 5), (5,))] == [256, 256, 256, 128]
    cache.add((1, 2, 3))
    assert cache.tokens((1, 2, 3)) == 384 and cache.tokens((4, 5)) == 128


def test_a_chat_repeats_itself_in_every_turn():
    found = [chat for chat, _ in zip(chats(1.0, 0), range(200), strict=False)]
    for chat in found:
        before = 0
        for turn in chat.turns:
            assert turn.prompt_tokens == before + turn.new_tokens
            before = turn.prompt_tokens + turn.output_tokens
        assert before <= LONGEST
    long = Chat(1, 0.0, 2, [Turn(500, 10, 500, 0.0)])
    other = Chat(2, 0.0, 2, [Turn(500, 10, 500, 0.0)])
    assert long.blocks(600)[:3] == long.blocks(500)
    assert [one == two for one, two in zip(long.blocks(500), other.blocks(500), strict=True)] == [True, True, False]
    assert chats_per_s(catalog(["full"])[0].profile) > 0


def test_baselines_choose_by_their_rules():
    turn = CHOICES["round-robin"](0)
    assert [turn(arriving()) for _ in range(4)] == ["a", "b", "c", "a"]
    assert {CHOICES["sticky"](0)(arriving(7)) for _ in range(9)} == {CHOICES["sticky"](1)(arriving(7))}
    assert len({CHOICES["sticky"](0)(arriving(chat)) for chat in range(50)}) == 3
    two = [CHOICES["power-of-two"](seed)(arriving()) for seed in range(60)]
    assert set(two) == {"b", "c"}, "never the longest of two"


@pytest.mark.parametrize("name", ["prefix-tree", "prefix-tree-10"])
def test_rays_rule_follows_the_prefix_until_queues_differ(name: str):
    choose = CHOICES[name](0)
    assert choose(arriving(0, (1, 2, 3))) == "b", "nothing is known: the shortest queue of those with least text"
    assert choose(arriving(0, (1, 2, 3, 4), {"a": 0, "b": 9, "c": 0})) == "b"
    far = {choose(arriving(0, (1, 2, 3, 4), {"a": 0, "b": 20, "c": 0})) for _ in range(20)}
    assert far == ({"b"} if name == "prefix-tree" else {"a", "c"})
    if name == "prefix-tree":
        assert choose(arriving(1, (7, 8), QUEUES)) == "c", "of those that were sent least, the shorter queue"


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, float]]:
    profile = catalog(["full"])[0].profile
    return {
        choice: replicas.summary(simulate(Cell(choice, 2, 0.8, 0, seconds=150, warmup_s=60)), 2, profile)
        for choice in CHOICES
    }


def test_chats_that_stay_are_found_in_the_cache_and_start_sooner(rows):
    for blind in ("round-robin", "power-of-two"):
        assert rows[OURS]["hit_share"] > rows[blind]["hit_share"] + 0.05
        assert rows[OURS]["ttft_p95_ms"] < rows[blind]["ttft_p95_ms"]
    assert rows[OURS]["busiest"] < 1.15
    assert rows[OURS]["turns"] >= rows["round-robin"]["turns"]


def test_the_same_seed_gives_the_same_result(rows):
    profile = catalog(["full"])[0].profile
    again = replicas.summary(simulate(Cell(OURS, 2, 0.8, 0, seconds=150, warmup_s=60)), 2, profile)
    assert again == rows[OURS]


def test_gateways_that_tell_each_other_find_more_in_the_caches():
    profile = catalog(["full"])[0].profile
    together, alone = (
        replicas.summary(simulate(Cell(OURS, 2, 0.5, 0, 3, exchange, 150, 60)), 2, profile)
        for exchange in (True, False)
    )
    assert together["hit_share"] > alone["hit_share"] + 0.05


def test_the_result_has_every_cell_its_table_and_figures(monkeypatch):
    monkeypatch.setattr(replicas, "REPLICAS", (2,))
    monkeypatch.setattr(replicas, "LOADS", (0.5,))
    monkeypatch.setattr(replicas, "SEEDS", (0, 1))
    monkeypatch.setattr(replicas, "GATEWAYS", (2, 0.5, 2))
    monkeypatch.setattr(replicas, "ProcessPoolExecutor", _Here)
    shorter = [(key, Cell(c.choice, 2, 0.5, c.seed, c.gateways, c.exchange, 40, 20)) for key, c in replicas.cells()]
    monkeypatch.setattr(replicas, "cells", lambda: shorter)
    result = json.loads(json.dumps(replicas.measure()))
    result["machine"] = {"measured": "2026-01-01", "cpu": "one", "cores": 2, "memory_gb": 1}
    assert set(result["simulated"]["2"]["0.5"]) == set(CHOICES)
    assert result["simulated"]["2"]["0.5"][OURS]["hit_share"]["n"] == 2
    table = replica_tables.replicas(result)
    assert table.count(f"| {OURS} |") == 2 and "each gateway alone" in table
    found = {figure.id: figure for figure in replica_tables.figures(result)}
    gain = found["2.load-0.5.ttft_p95_ms_gain_over_power-of-two"]
    assert gain.aim and gain.measured > 0


class _Here:
    """A pool of no processes."""

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work, *arguments):
        from concurrent.futures import Future

        done: Future = Future()
        done.set_result(work(*arguments))
        return done


class _Engine(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        parts = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "a word"}}]},
            {"choices": [], "usage": {"prompt_tokens": 300, "prompt_tokens_details": {"cached_tokens": 128}}},
        ]
        self._send(b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n")

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def engines() -> Iterator[list[ThreadingHTTPServer]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Engine) for _ in range(2)]
    with ExitStack() as running:
        for server in servers:
            server.bodies = []  # type: ignore[attr-defined]
            running.enter_context(serving(server))
        yield servers


def test_a_live_run_sends_the_chats_to_the_chosen_engines(engines, monkeypatch):
    monkeypatch.setattr("benchmarks.routing.live_replicas.chats", lambda rate, seed: iter(_few_chats()))
    urls = [f"http://127.0.0.1:{server.server_port}" for server in engines]
    served = asyncio.run(serve("sticky", urls, load=1.0, seed=0, seconds=0.6, warmup_s=0.0))
    assert len(served) == 8 and all(one.took for one in served)
    assert {(one.prompt_tokens, one.cached_tokens) for one in served} == {(300, 128)}
    row = replicas.summary(served, 2, catalog(["full"])[0].profile)
    assert row["hit_share"] == pytest.approx(128 / 300)
    bodies = [body for server in engines for body in server.bodies]  # type: ignore[attr-defined]
    lengths = sorted(len(body["messages"]) for body in bodies)
    assert lengths == [2] * 4 + [4] * 4, "the second turn has the first and its answer"
    assert len({body["cache_salt"] for body in bodies}) == 1
    for body in bodies:
        assert body["model"] == "tiny" and body["min_tokens"] == body["max_tokens"] == 5


def _few_chats() -> list[Chat]:
    drawn = random.Random(0)
    turns = [Turn(300, 5, 150, 0.0), Turn(400, 5, 95, 0.1)]
    return [Chat(number, drawn.uniform(0, 100), 1, turns) for number in range(4)]
