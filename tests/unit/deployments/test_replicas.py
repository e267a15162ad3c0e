"""Choice of a request's replica, and the load that the gateway reads from the engines' metrics."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import perf_counter
from typing import Any

import aiohttp
import pytest

from deployments import replicas as module
from deployments.ray_internals import Endpoint
from deployments.replicas import ServeReplicas
from serve.gateway.engine_client import NoReplica
from serve.routing.live_state import LiveState
from tests.support.http_server import serving

METRICS = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_total{engine="0",model_name="m"} 23.0
vllm:cache_config_info{block_size="128",enable_prefix_caching="%s",engine="0",kv_cache_size_tokens="23296"} 1.0
gearbox_engine_cpu_seconds_total 17.5
"""


@contextmanager
def engine(caching: str = "True") -> Iterator[str]:
    """An address where `METRICS` are."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((METRICS % caching).encode())

        def log_message(self, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Answer)) as url:
        yield url


async def updated(live: LiveState, monkeypatch: pytest.MonkeyPatch, *urls: str) -> LiveState:
    replicas = ServeReplicas(None)
    monkeypatch.setattr(replicas, "urls", lambda variant: list(urls))
    async with aiohttp.ClientSession() as session:
        await replicas.refresh("full", live, session)
    return live


async def test_the_load_is_the_sum_over_the_engines(monkeypatch):
    with ExitStack() as stack:
        urls = [stack.enter_context(engine()) for _ in range(2)]
        live = await updated(LiveState(), monkeypatch, *urls)
    assert (live.replicas, live.running, live.waiting, live.kv_usage, live.kv_tokens) == (2, 6, 4, 0.25, 23296)
    assert {url: state.remote_in_flight for url, state in live.by_replica.items()} == dict.fromkeys(urls, 5)


async def test_what_ends_while_engines_are_polled_is_not_another_gateways(monkeypatch):
    live = LiveState()
    live.on_dispatch(10, 4)

    async def stats(*_: object) -> dict[str, float]:
        live.on_complete(3)
        return {"num_requests_running": 5.0}

    monkeypatch.setattr(module, "_engine_stats", stats)
    await updated(live, monkeypatch, "http://127.0.0.1:9")
    assert live.in_flight == 1 and live.remote_in_flight == 1


async def test_what_ends_while_no_engine_answers_is_not_another_gateways(monkeypatch):
    live, answers = LiveState(), [{"num_requests_running": 5.0}, None]
    live.on_dispatch(10, 4)

    async def stats(*_: object) -> dict[str, float] | None:
        return answers.pop(0)

    monkeypatch.setattr(module, "_engine_stats", stats)
    await updated(live, monkeypatch, "http://127.0.0.1:9")
    live.on_complete(4)
    await updated(live, monkeypatch, "http://127.0.0.1:9")
    assert not answers and (live.running, live.remote_in_flight) == (5, 1)


async def test_an_engine_without_a_prefix_cache_has_none(monkeypatch):
    with engine(caching="False") as url:
        assert (await updated(LiveState(), monkeypatch, url)).kv_tokens == 0


async def test_an_engine_that_does_not_answer_is_not_taken_to_be_idle(monkeypatch):
    unreachable = "http://127.0.0.1:9"
    with engine() as url:
        live = await updated(LiveState(), monkeypatch, url, unreachable)
        assert (live.replicas, live.running, live.kv_tokens) == (2, 6, 23296), "as loaded as the other"
        assert [state.answers for state in live.by_replica.values()] == [True, False]
    live.on_dispatch(10)
    await updated(live, monkeypatch, unreachable)
    assert (live.replicas, live.running, live.waiting) == (1, 6, 4), "what was known stays"
    assert live.dispatched_since_refresh == 0, "but what peers are taken to have sent since does not pile up"
    await updated(live, monkeypatch)
    assert (live.replicas, live.running, live.waiting) == (0, 0, 0)


class Handle:
    """Of a variant whose replicas listen at `ports`. Serve's router chooses the first, and starts one where there is none."""

    def __init__(self, *ports: int) -> None:
        self.endpoints = [("127.0.0.1", port) for port in ports]
        self.reserved: list[bool] = []
        self.nodes: list[str] = []

    async def choose(self, reserve: bool) -> Endpoint:
        self.reserved.append(reserve)
        return self.endpoints[0] if self.endpoints else ("127.0.0.1", 9)


@pytest.fixture(autouse=True)
def _serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "replica_endpoints", lambda handle: handle.endpoints)
    monkeypatch.setattr(module, "replica_nodes", lambda handle: frozenset(handle.nodes))
    monkeypatch.setattr(module, "choose_endpoint", Handle.choose)


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def chosen(handle: Any, *avoid: int) -> str:
    replicas = ServeReplicas(None)
    replicas._handles["full"] = handle
    return await replicas.choose("full", {url(port) for port in avoid})


async def test_a_broken_replica_is_left_for_any_other():
    assert {await chosen(Handle(1, 2, 3), 1) for _ in range(50)} == {url(2), url(3)}
    with pytest.raises(NoReplica):
        await chosen(Handle(1, 2), 2, 1)


async def test_other_variants_broken_replicas_change_nothing():
    """A request that comes from another variant starts one from zero, and is spread by Serve's router as any."""
    assert await chosen(zero := Handle(), 7) == url(9)
    assert zero.reserved == [True]
    assert await chosen(up := Handle(1, 2), 7) == url(1)
    assert up.reserved == [False]


async def hardware(gpus: dict[str, float], **nodes: list[str]) -> dict[str, frozenset[str]]:
    """What each variant computes on, where Ray has placed its replicas on `nodes`."""
    replicas = ServeReplicas(None, gpus)
    found = {}
    async with aiohttp.ClientSession() as session:
        for variant in nodes:
            replicas._handles[variant] = handle = Handle()
            handle.nodes = nodes[variant]
            await replicas.refresh(variant, live := LiveState(), session)
            found[variant] = live.hardware
    return found


async def test_variants_on_the_same_node_share_its_cores():
    found = await hardware({"full": 0}, full=["a", "b"], int8=["b"], distilled=["c"])
    assert found == {"full": {"a", "b"}, "int8": {"b"}, "distilled": {"c"}}


async def test_fractions_of_a_gpu_are_shared_and_whole_gpus_are_not():
    gpus = {"half": 0.5, "third": 0.3, "whole": 1, "four": 4, "cpu": 0}
    found = await hardware(gpus, **{variant: ["a"] for variant in gpus})
    assert found["half"] & found["third"]
    alone = [found[name] for name in ("whole", "four", "cpu")]
    assert len(frozenset.union(found["half"], *alone)) == 4, "each has hardware of its own"


async def test_an_ejected_replica_does_not_count_and_is_not_polled(monkeypatch):
    replicas, live = ServeReplicas(None), LiveState()
    with ExitStack() as stack:
        urls = [stack.enter_context(engine()) for _ in range(2)]
        closed = "http://127.0.0.1:9"
        monkeypatch.setattr(replicas, "urls", lambda variant: [*urls, closed])
        polls: dict[str, tuple[float, float] | None] = {}
        monkeypatch.setattr(
            replicas.health,
            "on_poll",
            lambda url, stats, now: polls.update({url: (stats["tokens"], stats["cpu_s"])}),
        )
        monkeypatch.setattr(replicas.health, "on_refused", lambda url: polls.update({url: None}))
        replicas.health.eject(urls[0], 0.0)
        async with aiohttp.ClientSession() as session:
            await replicas.refresh("full", live, session)
    assert (live.replicas, live.ejected) == (2, 1)
    assert polls == {urls[1]: (123.0, 17.5), closed: None}


async def test_a_poll_that_hangs_delays_the_others_once(monkeypatch):
    replicas, live = ServeReplicas(None), LiveState()
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    monkeypatch.setattr("serve.gateway.replica_health.ANSWER_S", 0.2)
    monkeypatch.setattr(replicas, "urls", lambda variant: ["http://hangs", "http://answers"])
    hangs, polled = asyncio.Event(), []

    async def stats(session: object, url: str) -> dict[str, float]:
        polled.append(url)
        if url == "http://hangs":
            await hangs.wait()
        return {"num_requests_running": 2.0}

    monkeypatch.setattr(module, "_engine_stats", stats)
    took_s, loop = [], asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            before = loop.time()
            await replicas.refresh("full", live, session)
            took_s.append(loop.time() - before)
            await asyncio.sleep(0.01)
            assert [state.answers for state in live.by_replica.values()] == [False, True]
        assert polled == ["http://hangs", *["http://answers"] * 3], "one poll at a time"
        assert took_s[0] >= 0.2 > max(took_s[1:])
        hangs.set()
        await replicas.refresh("full", live, session)
        await replicas.refresh("full", live, session)
    assert [state.answers for state in live.by_replica.values()] == [True, True]


async def test_a_late_answer_of_an_engine_counts_the_next_time(monkeypatch):
    replicas, live = ServeReplicas(None), LiveState()
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    monkeypatch.setattr(replicas, "urls", lambda variant: ["http://slow"])
    slow = asyncio.Event()

    async def stats(session: object, url: str) -> dict[str, float]:
        await slow.wait()
        return {"num_requests_running": 2.0}

    monkeypatch.setattr(module, "_engine_stats", stats)
    async with aiohttp.ClientSession() as session:
        await replicas.refresh("full", live, session)
        assert live.running == 0 and not live.by_replica["http://slow"].answers
        slow.set()
        await asyncio.sleep(0)
        await replicas.refresh("full", live, session)
    assert live.running == 2 and live.by_replica["http://slow"].answers


async def test_an_engine_without_metrics_is_chosen_while_it_answers_probes(monkeypatch):
    replicas, live = ServeReplicas(None), LiveState()
    slow, other = "http://slow", "http://other"
    monkeypatch.setattr(replicas, "urls", lambda variant: [slow, other])
    health, now = replicas.health, perf_counter()
    health.on_poll_sent(slow, now - 4)
    health.on_poll(slow, {}, now - 4)
    health.on_poll_sent(slow, now - 2)

    async def stats(session: object, url: str) -> dict[str, float] | None:
        return None if url == slow else {}

    monkeypatch.setattr(module, "_engine_stats", stats)
    async with aiohttp.ClientSession() as session:
        await replicas.refresh("full", live, session)
        assert not live.by_replica[slow].answers
        assert health.check({slow: 2.0, other: 2.0}, now - 0.1) == [] and health.to_probe(now - 0.1) == [slow]
        health.on_probe(slow, True, now)
        await replicas.refresh("full", live, session)
    assert live.by_replica[slow].answers


async def test_what_a_variant_computes_on_follows_its_replicas():
    replicas, live = ServeReplicas(None), LiveState()
    replicas._handles["full"] = handle = Handle()
    async with aiohttp.ClientSession() as session:
        for nodes in (["a"], ["a", "b"], ["b"], []):
            handle.nodes = nodes
            await replicas.refresh("full", live, session)
            assert live.hardware == set(nodes)
        del replicas._handles["full"]
        await replicas.refresh("full", live, session)
    assert live.hardware == frozenset()
