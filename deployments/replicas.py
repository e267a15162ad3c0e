"""Replica selection: the replicas of each variant, which one serves a request, and the load of its engines.

Requests go straight to the replica's own HTTP port, as in Ray's direct streaming: per streamed chunk this costs a third of a
deployment handle (docs/design/performance.md).
"""

import asyncio
import random
from collections.abc import Collection, Iterable, Mapping
from time import perf_counter

import aiohttp
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.ray_internals import Endpoint, choose_endpoint, replica_endpoints, replica_nodes
from serve.config.addresses import authority
from serve.gateway.engine_client import NoReplica
from serve.gateway.replica_health import ANSWER_S, ReplicaHealth
from serve.routing.live_state import LiveState
from serve.telemetry.prometheus_text import parse

_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
_TOKENS = ("prompt_tokens_total", "generation_tokens_total")  # counters: what an engine did
_CACHE = "vllm:cache_config_info"
_CPU = "gearbox_engine_cpu_seconds_total"
_READ = (*(f"vllm:{name}" for name in (*_GAUGES, *_TOKENS)), _CACHE, _CPU)


def app_name(variant: str) -> str:
    """Name of the Serve application that runs `variant`."""
    return f"variant-{variant}"


async def app_handle(app: str) -> DeploymentHandle | None:
    """An initialized handle for the application `app`; None while it is not deployed.

    The lookup runs in a thread, since the controller may be slow. `options` initializes the handle here, because Serve's
    router belongs to the event loop on which it is created.
    """
    try:
        handle = await asyncio.to_thread(ray_serve.get_app_handle, app)
    except RayServeException:
        return None
    return handle.options()


class ServeReplicas:
    """The replicas of each variant, updated by Serve's request router, to which the controller pushes every change."""

    def __init__(self, host_override: str | None, gpus: Mapping[str, float] | None = None) -> None:
        self._host_override = host_override  # where replicas listen, if not on their node's address
        self._gpus = gpus or {}  # of each replica, by variant; none where there is no entry
        self._handles: dict[str, DeploymentHandle] = {}
        self._polls: dict[str, dict[str, asyncio.Task[dict[str, float] | None]]] = {}  # by variant, then by base URL
        self.health = ReplicaHealth()

    async def sync(self, variants: Iterable[str]) -> None:
        """Hold a handle for each of `variants` that is deployed, and for no other."""
        names = set(variants)
        for removed in self._handles.keys() - names:
            del self._handles[removed]
        for name in names - self._handles.keys():
            if (handle := await app_handle(app_name(name))) is not None:
                self._handles[name] = handle

    async def choose(self, variant: str, avoid: Collection[str] = ()) -> str:
        """Base URL of a replica of `variant`. Waits while one starts from zero; the client may cancel.

        When some of its replicas are in `avoid`, choose any other at random: Serve's router does not know yet that they are
        broken.

        Raises:
            NoReplica: the variant is not deployed or was removed, or all its replicas are in `avoid`.
        """
        handle = self._handles.get(variant)
        if handle is None:
            raise NoReplica(f"variant '{variant}' is not deployed")
        urls = self.urls(variant)
        others = [url for url in urls if url not in avoid]
        if len(others) < len(urls):  # `avoid` may hold replicas of other variants only, which do not matter here
            if not others:
                raise NoReplica(f"variant '{variant}' has no other replica")
            return random.choice(others)
        try:
            endpoint = await choose_endpoint(handle, reserve=not urls)
        except RayServeException as error:
            raise NoReplica(f"variant '{variant}' is not available") from error
        if endpoint is None:
            raise NoReplica(f"the replica of variant '{variant}' has no HTTP port")
        return self._url(endpoint)

    def urls(self, variant: str) -> list[str]:
        """Base URLs of all running replicas of `variant`. Thread-safe: the metrics server calls it too."""
        handle = self._handles.get(variant)
        return [self._url(endpoint) for endpoint in replica_endpoints(handle)] if handle else []

    async def refresh(self, variant: str, live: LiveState, session: aiohttp.ClientSession) -> None:
        """Update `live`: replicas and where they run from Serve, the load from the metrics of each engine.

        Engines that do not answer count as loaded as the others; when none answers, the last known load stays.
        """
        urls = self.urls(variant)
        live.hardware = self._hardware(variant)
        in_flight, by_replica = live.in_flight, live.in_flight_by_replica
        ejected = self.health.ejected(urls)
        answers = await self._poll_all(session, variant, [url for url in urls if url not in ejected])
        ejected = self.health.ejected(urls)
        live.ejected = len(ejected)
        sequences = {url: _sequences(stats) for url, stats in answers.items() if url not in ejected}
        live.update_replicas(sequences, by_replica, self.health.vouched(sequences, perf_counter()))
        urls = list(sequences)
        engines = [stats for url in urls if (stats := answers[url])]
        if urls and not engines:
            return live.update_without_answer(len(urls))
        scale = len(urls) / len(engines) if engines else 1
        live.update_from_engines(
            len(urls),
            round(scale * sum(stats.get("num_requests_running", 0) for stats in engines)),
            round(scale * sum(stats.get("num_requests_waiting", 0) for stats in engines)),
            max((stats.get("kv_cache_usage_perc", 0.0) for stats in engines), default=0.0),
            kv_tokens=min((round(stats.get("kv_tokens", 0)) for stats in engines), default=None),
            in_flight_before=in_flight,
        )

    async def _poll_all(
        self, session: aiohttp.ClientSession, variant: str, urls: Collection[str]
    ) -> dict[str, dict[str, float] | None]:
        """What each engine of `variant` reports; None where it does not in time: a late answer counts the next time.

        For one that is late already, the others do not wait.
        """
        polls = self._polls.setdefault(variant, {})
        for gone in polls.keys() - set(urls):
            polls.pop(gone).cancel()
        for url in urls:
            if url not in polls:
                polls[url] = asyncio.create_task(self._poll(session, url))
        waited = [poll for url, poll in polls.items() if not self.health.is_late(url, perf_counter())]
        if waited:
            await asyncio.wait(waited, timeout=ANSWER_S)
        return {url: polls.pop(url).result() if polls[url].done() else None for url in urls}

    async def _poll(self, session: aiohttp.ClientSession, url: str) -> dict[str, float] | None:
        self.health.on_poll_sent(url, perf_counter())
        try:
            stats = await _engine_stats(session, url)
        except ConnectionRefusedError:
            self.health.on_refused(url)
            return None
        if stats is not None:
            self.health.on_poll(url, stats, perf_counter())
        return stats

    def _hardware(self, variant: str) -> frozenset[str]:
        """Ids of what the replicas of `variant` compute on; variants with a common id share it.

        Replicas without a GPU share the cores of their node, those with less than a whole GPU its GPUs. Ray gives whole GPUs
        to one replica only.
        """
        handle, gpus = self._handles.get(variant), self._gpus.get(variant, 0)
        part = "" if not gpus else "/gpu" if gpus < 1 else f"/gpu/{variant}"
        return frozenset(f"{node}{part}" for node in replica_nodes(handle)) if handle else frozenset()

    def _url(self, endpoint: Endpoint) -> str:
        host, port = endpoint
        return f"http://{authority(self._host_override or host, port)}"


def _sequences(stats: Mapping[str, float] | None) -> int | None:
    """Sequences at an engine, running and waiting; None when it did not answer."""
    return round(stats.get("num_requests_running", 0) + stats.get("num_requests_waiting", 0)) if stats else None


async def _engine_stats(session: aiohttp.ClientSession, url: str) -> dict[str, float] | None:
    """Gauges of one engine, the `tokens` that it has read and written, its CPU time `cpu_s`; empty when they cannot be read.

    None when it does not answer in time. Raises `ConnectionRefusedError` where nobody listens.
    """
    try:
        async with session.get(f"{url}/metrics") as response:
            samples = parse(await response.text(), _READ)
    except (TimeoutError, aiohttp.ClientError) as error:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
            raise error.os_error from error
        return None
    except ValueError:
        return {}
    stats = {name: value for name in _GAUGES for value in samples.get(f"vllm:{name}", {}).values()}
    if counted := [value for name in _TOKENS for value in samples.get(f"vllm:{name}", {}).values()]:
        stats["tokens"] = sum(counted)
    for cpu_s in samples.get(_CPU, {}).values():
        stats["cpu_s"] = cpu_s
    for series in samples.get(_CACHE, {}):
        settings = dict(series)
        tokens = settings.get("kv_cache_size_tokens", "")
        if settings.get("enable_prefix_caching") == "True" and tokens.isdecimal():
            stats["kv_tokens"] = float(tokens)
    return stats
