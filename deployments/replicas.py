"""Which replicas a variant has and which one takes a request, as Ray Serve's request router knows it.

The stream itself goes straight to the replica's own HTTP port, as in Ray's direct streaming: a chunk costs a third of
what it costs over a deployment handle (docs/performance.md). Only here and in `gateway` Serve's private parts are reached into.
"""

import asyncio
import random
import re
from collections.abc import Collection, Iterable

import aiohttp
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.config.addresses import authority
from serve.gateway.engine_client import NoReplica
from serve.routing.catalog import LiveState

_GAUGES = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{[^}\n]*\} (\S+)$", re.MULTILINE
)
_CACHE = re.compile(rb"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_CACHE_TOKENS = re.compile(rb'(?:^|,)kv_cache_size_tokens="(\d+)"')


def app_name(variant: str) -> str:
    """Name of the Serve application that runs `variant`."""
    return f"variant-{variant}"


async def app_handle(app: str) -> DeploymentHandle | None:
    """A handle for the application `app`, ready for use; None while it is not deployed.

    The controller is asked from a thread, since it may take its time. The handle is made ready here: Serve's router
    belongs to the event loop that it is made on.
    """
    try:
        handle = await asyncio.to_thread(ray_serve.get_app_handle, app)
    except RayServeException:
        return None
    if not handle.is_initialized:
        handle._init()
    return handle


class ServeReplicas:
    """Chooses replicas through Serve's own router, which learns of every change by the controller's push."""

    def __init__(self, host_override: str | None) -> None:
        self._host_override = host_override  # where replicas listen, if not on their node's address
        self._handles: dict[str, DeploymentHandle] = {}

    async def sync(self, variants: Iterable[str]) -> None:
        """Hold a handle for each of `variants` that is deployed, and for no other."""
        wanted = set(variants)
        for gone in self._handles.keys() - wanted:
            del self._handles[gone]
        for name in wanted - self._handles.keys():
            if (handle := await app_handle(app_name(name))) is not None:
                self._handles[name] = handle

    async def choose(self, variant: str, avoid: Collection[str] = ()) -> str:
        """Base URL of a replica of `variant`. Waits while one starts from zero; the caller's client may cancel.

        Where some of its replicas are in `avoid`, any other is taken: Serve's router does not know yet that they are broken.

        Raises:
            NoReplica: the variant is not deployed or was taken down, or all its replicas are in `avoid`.
        """
        handle = self._handles.get(variant)
        if handle is None:
            raise NoReplica(f"variant '{variant}' is not deployed")
        urls = self.urls(variant)
        others = [url for url in urls if url not in avoid]
        if len(others) < len(urls):  # `avoid` may have other variants' replicas only: those say nothing of this one's
            if not others:
                raise NoReplica(f"variant '{variant}' has no other replica")
            return random.choice(others)
        # only a request that asks to reserve a place counts as queued, and that is what starts a replica from zero
        starts = not urls
        try:
            async with handle.choose_replica(_reserve=starts) as selection:
                endpoint = selection._replica.backend_http_endpoint
        except RayServeException as error:
            raise NoReplica(f"variant '{variant}' is not available") from error
        if endpoint is None:
            raise NoReplica(f"the replica of variant '{variant}' has no HTTP port")
        return self._url(endpoint)

    def urls(self, variant: str) -> list[str]:
        """Base URLs of all replicas of `variant` that run now."""
        handle = self._handles.get(variant)
        router = handle._router._asyncio_router.request_router if handle and handle._router else None
        if router is None:
            return []
        replicas = tuple(router.curr_replicas.values())  # at once: the metrics port's thread asks, too
        endpoints = (replica.backend_http_endpoint for replica in replicas)
        return [self._url(endpoint) for endpoint in endpoints if endpoint]

    async def refresh(self, variant: str, live: LiveState, session: aiohttp.ClientSession) -> None:
        """Bring `live` up to date: replicas from Serve, load from each engine's own metrics.

        Engines that do not answer count as loaded as the others; when none does, what was known of them stays.
        """
        urls = self.urls(variant)
        engines = [stats for stats in await asyncio.gather(*(_engine_stats(session, url) for url in urls)) if stats]
        if urls and not engines:
            return live.update_from_engines(len(urls), live.running, live.waiting, live.kv_usage)
        share = len(urls) / len(engines) if engines else 1
        live.update_from_engines(
            len(urls),
            round(share * sum(stats.get("num_requests_running", 0) for stats in engines)),
            round(share * sum(stats.get("num_requests_waiting", 0) for stats in engines)),
            max((stats.get("kv_cache_usage_perc", 0.0) for stats in engines), default=0.0),
            kv_tokens=min((round(stats.get("kv_tokens", 0)) for stats in engines), default=None),
        )

    def _url(self, endpoint: tuple[str, int]) -> str:
        host, port = endpoint
        return f"http://{authority(self._host_override or host, port)}"


async def _engine_stats(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The engine's own gauges; empty when it does not answer in time (a dying replica must not stall the others)."""
    try:
        async with session.get(f"{url}/metrics") as response:
            text = await response.read()
    except (TimeoutError, aiohttp.ClientError):
        return {}
    stats = {name.decode(): float(value) for name, value in _GAUGES.findall(text)}
    cache = _CACHE.search(text)
    if cache and b'enable_prefix_caching="True"' in cache[1] and (tokens := _CACHE_TOKENS.search(cache[1])):
        stats["kv_tokens"] = float(tokens[1])
    return stats
