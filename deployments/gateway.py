"""The gateway as a Ray Serve deployment: wires `serve.gateway.app` to Serve's replicas and keeps the live state fresh."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import ray
from ray import serve as ray_serve

from deployments.gateway_log import log_with_serve
from deployments.listener import replica_host
from deployments.placement import HERE
from deployments.replicas import ServeReplicas
from deployments.retrieval import RetrievalHandle
from serve.card import CARD_FILE, Card, CardError, load_card
from serve.config.addresses import authority
from serve.config.platform import ConfigError, PlatformConfig
from serve.gateway.app import Gateway
from serve.routing.catalog import Variant, make_variant
from serve.telemetry.metrics import Metrics
from serve.telemetry.metrics_server import Exposition, serve_metrics

REFRESH_S = 0.5  # bound on the staleness of the live state
REREAD_S = 5  # a mounted secret takes a minute to arrive anyway
_PUBLISH_S = 5  # asking a shared store for every tenant's limits is not free
_LOG = logging.getLogger("gearbox.gateway")


class GatewayDeployment:
    """One gateway replica. Serve's `user_config` carries what changes without a restart, see `reconfigure`."""

    def __init__(self, config: Mapping[str, object], engine_token: str) -> None:
        log_with_serve()
        self._given = config
        self._config = PlatformConfig.model_validate(config)  # keys of a file, and profiles, come with `reconfigure`
        self._catalog: Mapping[str, object] = {}
        self._variants: dict[str, Variant] = {}
        self._left_out: dict[str, str] = {}
        self._replicas = ServeReplicas(replica_host(self._config.server.host))
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._metrics = Metrics()
        self._retrieval = RetrievalHandle(wanted=self._config.retrieval is not None)
        self._app = Gateway(self._config, self._variants, self._replicas, self._metrics, engine_token, self._retrieval)
        self._watching: asyncio.Task[None] | None = None
        told = Exposition(self._metrics, self._config.model.name, lambda: list(self._variants.values()), folder)
        server = self._config.server
        self._metrics_server = serve_metrics(server.host, server.metrics_port, told, self._targets)

    def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises: a part that has ended is not missed otherwise."""
        if not self._metrics_server.thread.is_alive():
            raise RuntimeError("the metrics port is not served any more")
        if self._watching is not None and self._watching.done():
            raise RuntimeError("the watch over the engines has ended")

    async def reconfigure(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Take a new `catalog`, `{variant name: its card, or the folder where the card appears}`, and `config`, sections
        that replace those of the configuration.

        What is known of the variants that stay is kept.
        """
        self._given = {**self._given, **settings["config"]}
        config = PlatformConfig.model_validate(self._given)
        try:
            self._config = await asyncio.to_thread(config.with_file_keys)
        except ConfigError as error:
            if self._watching is None:  # at the start: Serve says so, and keeps the replicas that this was to replace
                raise
            _LOG.error("the keys stay as they were: %s", error)
            self._config = config.model_copy(update={"access": self._config.access})
        self._app.reconfigure(self._config)
        self._catalog = settings["catalog"]
        self._take(await asyncio.to_thread(self._cards))
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def _cards(self) -> dict[str, Card]:
        """The cards that are there; in a cluster, weights may arrive after the gateway knows of them."""
        cards = {}
        for name, entry in self._catalog.items():
            if not isinstance(entry, str):
                cards[name] = Card.model_validate(entry)
            elif (Path(entry) / CARD_FILE).is_file():
                try:
                    cards[name] = load_card(Path(entry))
                except CardError as error:
                    self._leave_out(name, error)
        return cards

    def _leave_out(self, name: str, error: Exception) -> None:
        """The others go on; it is looked at again, and told of once."""
        if self._left_out.get(name) != str(error):
            _LOG.error("variant %s is left out: %s", name, error)
            self._left_out[name] = str(error)

    def _take(self, cards: Mapping[str, Card]) -> None:
        """Have the catalog's variants with these cards. One whose new card is not there yet goes on with the one it had."""
        configured = {variant.name: variant for variant in self._config.variants}
        cards = {name: card for name in self._catalog if (card := cards.get(name) or self._card_of(name))}
        fresh: dict[str, Variant] = {}
        for name, card in cards.items():
            config = configured[name]
            waiting = self._config.server.max_waiting_per_replica
            try:
                variant = make_variant(config, card, self._config.engine_args(config), waiting)
            except ConfigError as error:
                self._leave_out(name, error)
                continue
            if known := self._variants.get(name):
                same = known.profile == variant.profile and known.max_running == variant.max_running
                variant = replace(variant, live=known.live, latency=known.latency if same else variant.latency)
            variant.live.peers = self._config.server.gateway_replicas - 1
            fresh[name] = variant
        self._variants.clear()
        self._variants.update(fresh)

    def _card_of(self, name: str) -> Card | None:
        return self._variants[name].card if name in self._variants else None

    async def __serve_build_asgi_app__(self) -> Gateway:
        """Called by Serve for the application behind this replica's port."""
        return self._app

    async def _watch(self) -> None:
        """Look at the variants, and do what must not hold up the looks because others may answer late."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            await asyncio.gather(
                _repeat(self._connect, REFRESH_S, "deployments could not be looked up"),
                _repeat(lambda: self._look(session), REFRESH_S, "the live state could not be refreshed"),
                _repeat(self._app.export_quotas, _PUBLISH_S, "the limits' use is not known"),
                _repeat(self._reread, REREAD_S, "files could not be read again: what they said before still holds"),
            )

    async def _connect(self) -> None:
        await asyncio.gather(self._replicas.sync(self._variants), self._retrieval.sync())

    async def _look(self, session: aiohttp.ClientSession) -> None:
        variants = list(self._variants.values())
        await asyncio.gather(*(self._replicas.refresh(v.name, v.live, session) for v in variants))
        for variant in variants:
            variant.latency.tick()

    async def _reread(self) -> None:
        """Take the cards that have appeared, and the keys where their file has changed."""
        cards = await asyncio.to_thread(self._cards)
        if any(card != self._card_of(name) for name, card in cards.items()):
            self._take(cards)
        if self._config.access.keys_file is not None:
            config = await asyncio.to_thread(lambda: PlatformConfig.model_validate(self._given).with_file_keys())
            if config.access != self._config.access:
                self._config = config
                self._app.reconfigure(config)
                _LOG.info("the keys have changed: %d now", len(config.access.keys))

    def _targets(self) -> list[dict[str, object]]:
        """The engines' metrics endpoints and Ray's, one on each node, for Prometheus' HTTP service discovery."""
        common = {"model": self._config.model.name, "__metrics_path__": "/metrics"}
        engines = [
            {"targets": [url.removeprefix("http://")], "labels": {**common, "component": "engine", "variant": name}}
            for name in list(self._variants)
            for url in self._replicas.urls(name)
        ]
        nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
        host = replica_host(self._config.server.host)
        addresses = [authority(host or node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes]
        return [*engines, {"targets": addresses, "labels": {**common, "component": "ray"}}]


async def _repeat(work: Callable[[], Awaitable[None]], each_s: float, failure: str) -> NoReturn:
    """Do `work` for ever; one failure is logged and does not end it."""
    while True:
        try:
            await work()
        except Exception:
            _LOG.exception(failure)
        await asyncio.sleep(each_s)


def gateway_app(
    config: PlatformConfig,
    catalog: Mapping[str, Card],
    routing: Mapping[str, object],
    engine_token: str,
    metrics_folder: str,
) -> ray_serve.Application:
    """The gateway's application on this machine. `routing` replaces sections of `config`, see `serve.config.platform.ROUTING`."""
    cards = {name: card.model_dump(mode="json") for name, card in catalog.items()}
    deployment = gateway_deployment(config, metrics_folder).options(
        num_replicas=config.server.gateway_replicas, user_config={"catalog": cards, "config": dict(routing)}
    )
    # Without a version of ours, Serve gives a new one to every deploy and replaces the replica for a mere `user_config`.
    deployment = deployment.options(_internal=True, version="gateway")
    return deployment.bind(settings_of(config), engine_token)


def gateway_deployment(config: PlatformConfig, metrics_folder: str, placement: Mapping[str, object] = HERE) -> Any:
    """The gateway's deployment, without its `user_config`. Its replicas are bound to (`settings_of(config)`, engine token)."""
    env = {"PROMETHEUS_MULTIPROC_DIR": metrics_folder}
    return ray_serve.deployment(
        ray_serve.ingress()(GatewayDeployment),
        name="gateway",
        max_ongoing_requests=10_000,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.server.drain_timeout_s,
        max_surge_percent=100,  # its successor answers before it goes
        ray_actor_options={**placement, "runtime_env": {"env_vars": env}},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )


def settings_of(config: PlatformConfig) -> dict[str, object]:
    """`config` for replicas: without the database's password, which the gateway does not need."""
    return config.model_dump(mode="json", exclude={"retrieval": {"database"}})
