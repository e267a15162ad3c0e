"""Gateway deployment: `serve.gateway.app` on Ray Serve, with background tasks that keep the live state, cards and keys current."""

import asyncio
import gc
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from pydantic import ValidationError
from ray import serve as ray_serve

from compression.files import write_atomically
from deployments.failure_log import FailureLog
from deployments.gateway_log import log_with_serve
from deployments.listener import replica_host
from deployments.placement import LOCAL
from deployments.ray_internals import (
    delete_shared_value,
    get_shared_value,
    node_metrics_endpoints,
    put_shared_value,
    replica_is_stopping,
    shared_values,
    with_version,
)
from deployments.replicas import ServeReplicas
from deployments.retrieval import RetrievalHandle
from deployments.state import STATE_DIR
from serve.card import CARD_FILE, Card, CardError, load_card
from serve.config.addresses import authority
from serve.config.platform import ConfigError, PlatformConfig
from serve.errors import log_unhandled, origin_of
from serve.gateway.app import Gateway
from serve.gateway.replica_health import CHECK_S
from serve.routing.catalog import Variant, make_variant
from serve.routing.prefix_exchange import PrefixExchange
from serve.telemetry.metrics import Metrics
from serve.telemetry.metrics_files import allocate_metrics_files
from serve.telemetry.metrics_server import Exposition, serve_metrics
from serve.validation import first_problem

REFRESH_S = 0.5  # bound on the staleness of the live state
RELOAD_S = 5  # shorter is no use: Kubernetes takes a minute to update a mounted secret
_SAVE_S = 10
_EXCHANGE_S = 1.0  # a chat's next turn comes seconds after the last
_SILENT = 60  # exchanges without a message after which a gateway is taken to have stopped
_END_BEFORE_S = 2  # before the drain timeout: time to send the error
_PUBLISH_S = 5  # reading every tenant's limits from a shared store has a cost
_FIND_S = 3.0  # at a gateway's start, for the replicas of all variants
_POLL_TIMEOUT = aiohttp.ClientTimeout(total=2)
_LOG = logging.getLogger("gearbox.gateway")


class GatewayDeployment:
    """One gateway replica. Serve's `user_config` holds the settings that change without a restart, see `reconfigure`."""

    def __init__(self, config: Mapping[str, object], engine_token: str) -> None:
        log_with_serve()
        self._settings = config
        self._config = PlatformConfig.model_validate(config)  # `reconfigure` adds profiles and the keys from a file
        self._catalog: Mapping[str, object] = {}
        self._variants: dict[str, Variant] = {}
        self._rejected: dict[str, str] = {}  # reason by variant
        gpus = {variant.name: variant.resources.gpus for variant in self._config.variants}
        self._replicas = ServeReplicas(replica_host(self._config.server.host), gpus)
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            with suppress(OSError):  # `MetricsFile` reports it
                Path(folder).mkdir(parents=True, exist_ok=True)
            allocate_metrics_files()
        self._metrics = Metrics()
        self._metrics.gateway_starts.inc()
        self._retrieval = RetrievalHandle(enabled=self._config.retrieval is not None)
        self._app = Gateway(self._config, self._variants, self._replicas, self._metrics, engine_token, self._retrieval)
        self._refreshing: asyncio.Task[None] | None = None
        self._id = uuid.uuid4().hex[:12]
        state = os.environ.get(STATE_DIR)  # in a cluster there is none
        self._learned_file = Path(state) / f"learned-{self._config.model.name}.json" if state else None
        self._exchange = PrefixExchange()
        self._silent: dict[str, int] = {}  # exchanges without a new message, by gateway
        exposition = Exposition(self._metrics, self._config.model.name, lambda: list(self._variants.values()), folder)
        server = self._config.server
        self._metrics_server = serve_metrics(server.host, server.metrics_port, exposition, self._targets)

    def check_health(self) -> None:
        """Called by Serve, which replaces this replica when it raises: the gateway would keep serving without these parts."""
        if not self._metrics_server.thread.is_alive():
            raise RuntimeError("the metrics server has stopped")
        if self._refreshing is not None and self._refreshing.done():
            raise RuntimeError("the background refresh has stopped")

    async def reconfigure(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Apply a new `catalog`, `{variant name: card, or folder in which the card appears}`, and `config`, sections that
        replace those of the configuration.

        Variants that stay keep their live state and latency estimates.
        """
        replaced = {**self._settings, **settings["config"]}
        try:
            config = PlatformConfig.model_validate(replaced)
        except ValidationError as error:
            if self._refreshing is None:
                raise
            # raised further, Serve would stop this replica, and each that replaces it
            return _LOG.error("the configuration is unchanged, the new one is invalid: %s", first_problem(error))
        self._settings = replaced
        try:
            self._config = await asyncio.to_thread(config.with_file_keys)
        except ConfigError as error:
            if self._refreshing is None:  # at start-up: Serve reports the error and keeps the previous replicas
                raise
            _LOG.error("the API keys are unchanged, the key file is invalid: %s", error)
            self._config = config.model_copy(update={"access": self._config.access})
        self._app.reconfigure(self._config)
        self._catalog = settings["catalog"]
        self._update_variants(await asyncio.to_thread(self._load_cards))
        if self._refreshing is None:
            await asyncio.to_thread(self._restore_learned)
            await self._find_replicas()
            self._refreshing = asyncio.create_task(self._run_background())

    @property
    def _learned_key(self) -> bytes:
        return f"gearbox-learned-{self._config.model.name}".encode()

    def _restore_learned(self) -> None:
        """Begin with what a gateway of this cluster, or of the last one on this machine, knew last.

        The cards alone are a poor guess of this machine's speed.
        """
        try:
            data = get_shared_value(self._learned_key)
            if data is None and self._learned_file is not None and self._learned_file.exists():
                data = self._learned_file.read_bytes()
            if data is not None and self._app.restore(data):
                _LOG.info("routing starts from the state that an earlier gateway had learned")
        except Exception as error:
            _LOG.error(
                "routing starts from the cards: the state that an earlier gateway had learned cannot be read: %s",
                origin_of(error),
            )

    async def _save_learned(self) -> None:
        learned = self._app.learned()
        await asyncio.to_thread(put_shared_value, self._learned_key, learned)
        if self._learned_file is not None:
            await asyncio.to_thread(write_atomically, self._learned_file, learned)

    def _load_cards(self) -> dict[str, Card]:
        """The cards that exist by now; in a cluster, a variant's weights may arrive later than its place in the catalog."""
        cards = {}
        for name, entry in self._catalog.items():
            if not isinstance(entry, str):
                cards[name] = Card.model_validate(entry)
            elif (Path(entry) / CARD_FILE).is_file():
                try:
                    cards[name] = load_card(Path(entry))
                except CardError as error:
                    self._reject(name, error)
        return cards

    def _reject(self, name: str, error: Exception) -> None:
        """Leave a variant out of the catalog, and log the reason once; it is retried, and the others are unaffected."""
        if self._rejected.get(name) != str(error):
            _LOG.error("variant %s is not served: %s", name, error)
            self._rejected[name] = str(error)

    def _update_variants(self, cards: Mapping[str, Card]) -> None:
        """Replace the variants by those in the catalog. One whose new card does not exist yet keeps its previous card."""
        configured = {variant.name: variant for variant in self._config.variants}
        cards = {name: card for name in self._catalog if (card := cards.get(name) or self._current_card(name))}
        variants: dict[str, Variant] = {}
        for name, card in cards.items():
            config = configured[name]
            max_waiting = self._config.server.max_waiting_per_replica
            try:
                variant = make_variant(config, card, self._config.engine_args(config), max_waiting)
            except ConfigError as error:
                self._reject(name, error)
                continue
            if known := self._variants.get(name):
                same = known.profile == variant.profile and known.max_running == variant.max_running
                variant = replace(variant, live=known.live, latency=known.latency if same else variant.latency)
            variant.live.peers = self._config.server.gateway_replicas - 1
            variants[name] = variant
        self._variants.clear()
        self._variants.update(variants)

    def _current_card(self, name: str) -> Card | None:
        return self._variants[name].card if name in self._variants else None

    async def __serve_build_asgi_app__(self) -> Gateway:
        """Called by Serve for the ASGI application behind this replica's port."""
        return self._app

    async def _run_background(self) -> None:
        """Run the periodic tasks, each in a loop of its own, so that none delays another by a slow response."""
        asyncio.get_running_loop().set_exception_handler(log_unhandled)
        async with aiohttp.ClientSession(timeout=_POLL_TIMEOUT) as session:
            await asyncio.gather(
                self._freeze(),
                _repeat(self._connect, REFRESH_S, "looking up the deployments failed"),
                _repeat(lambda: self._refresh(session), REFRESH_S, "refreshing the live state failed"),
                _repeat(self._end_requests, REFRESH_S, "ending the requests under way failed"),
                _repeat(self._update_routing, REFRESH_S, "updating the routing failed"),
                _repeat(self._check_replicas, CHECK_S, "checking the replicas failed"),
                _repeat(self._app.export_quotas, _PUBLISH_S, "exporting the rate limits' utilization failed"),
                _repeat(self._save_learned, _SAVE_S, "saving what routing has learned failed"),
                _repeat(self._exchange_prefixes, _EXCHANGE_S, "exchanging the gateways' prefixes failed"),
                _repeat(self._reload_files, RELOAD_S, "reloading cards and keys failed; the previous ones stay"),
            )

    async def _freeze(self) -> None:
        """Take what start-up has loaded out of garbage collection: a full collection would scan it while every stream waits."""
        await self._app.loaded.wait()
        gc.collect()
        gc.freeze()

    async def _exchange_prefixes(self) -> None:
        """Tell the other gateways which prompts were read where, and learn theirs."""
        if self._config.server.gateway_replicas == 1:
            return
        prefix = f"gearbox-prefixes-{self._config.model.name}-"
        message = self._exchange.message(self._variants.values())
        await asyncio.to_thread(put_shared_value, (prefix + self._id).encode(), message)
        stored = await asyncio.to_thread(shared_values, prefix.encode())
        messages = {key.decode(): value for key, value in stored.items() if key.decode() != prefix + self._id}
        silent = self._exchange.receive(messages, self._variants)
        self._silent = {sender: self._silent.get(sender, 0) + 1 for sender in silent}
        for sender in [sender for sender, count in self._silent.items() if count >= _SILENT]:
            await asyncio.to_thread(delete_shared_value, sender.encode())

    async def _find_replicas(self) -> None:
        """Know the replicas before the first request: a gateway that replaces another must not refuse what they can answer."""
        try:
            async with asyncio.timeout(_FIND_S), aiohttp.ClientSession(timeout=_POLL_TIMEOUT) as session:
                while any(not v.live.replicas and not v.scales_to_zero for v in self._variants.values()):
                    await self._connect()
                    await self._refresh(session)
                    await asyncio.sleep(_FIND_S / 30)
        except TimeoutError:
            _LOG.info("the gateway starts without replicas of some variants")
        except Exception as error:  # it is tried again as long as the gateway runs
            _LOG.error("looking up the replicas failed: %s", origin_of(error))

    async def _connect(self) -> None:
        await asyncio.gather(self._replicas.sync(self._variants), self._retrieval.sync())

    async def _refresh(self, session: aiohttp.ClientSession) -> None:
        variants = list(self._variants.values())
        await asyncio.gather(*(self._replicas.refresh(v.name, v.live, session) for v in variants))

    async def _end_requests(self) -> None:
        """While Serve stops this replica: end what is still under way just before Serve would cut its connection."""
        if replica_is_stopping():
            timeout_s = self._config.server.drain_timeout_s
            await asyncio.sleep(max(timeout_s - _END_BEFORE_S, timeout_s / 2))
            if ended := self._app.end_requests():
                _LOG.warning("ended %d requests that were not complete after server.drain_timeout_s", ended)

    async def _update_routing(self) -> None:
        self._app.refresh()

    async def _check_replicas(self) -> None:
        self._app.check_replicas()

    async def _reload_files(self) -> None:
        """Load cards that have appeared, and API keys if their file has changed."""
        cards = await asyncio.to_thread(self._load_cards)
        if any(card != self._current_card(name) for name, card in cards.items()):
            self._update_variants(cards)
        if self._config.access.keys_file is not None:
            config = await asyncio.to_thread(lambda: PlatformConfig.model_validate(self._settings).with_file_keys())
            if config.access != self._config.access:
                self._config = config
                self._app.reconfigure(config)
                _LOG.info("reloaded the API keys: %d", len(config.access.keys))

    def _targets(self) -> list[dict[str, object]]:
        """Metrics endpoints of the engines and of Ray's nodes, for Prometheus' HTTP service discovery."""
        common = {"model": self._config.model.name, "__metrics_path__": "/metrics"}
        engines = [
            {"targets": [url.removeprefix("http://")], "labels": {**common, "component": "engine", "variant": name}}
            for name in list(self._variants)
            for url in self._replicas.urls(name)
        ]
        host_override = replica_host(self._config.server.host)
        addresses = [authority(host_override or host, port) for host, port in node_metrics_endpoints()]
        return [*engines, {"targets": addresses, "labels": {**common, "component": "ray"}}]


async def _repeat(work: Callable[[], Awaitable[None]], period_s: float, failure: str) -> NoReturn:
    """Run `work` periodically; log failures and continue."""
    log = FailureLog(_LOG, failure, unexpected=True)
    while True:
        try:
            await work()
        except Exception as error:
            log.on_failure(error)
        else:
            log.on_success()
        await asyncio.sleep(period_s)


def gateway_app(
    config: PlatformConfig,
    catalog: Mapping[str, Card],
    reloaded: Mapping[str, object],
    engine_token: str,
    metrics_folder: str,
) -> ray_serve.Application:
    """The gateway's application on a single machine. `reloaded` replaces sections of `config`, see `serve.config.platform.RELOADED`."""
    cards = {name: card.model_dump(mode="json") for name, card in catalog.items()}
    deployment = gateway_deployment(config, metrics_folder).options(
        num_replicas=config.server.gateway_replicas, user_config={"catalog": cards, "config": dict(reloaded)}
    )
    return with_version(deployment, "gateway").bind(settings_of(config), engine_token)


def gateway_deployment(config: PlatformConfig, metrics_folder: str, placement: Mapping[str, object] = LOCAL) -> Any:
    """The gateway's deployment, without its `user_config`. Its replicas are bound to (`settings_of(config)`, engine token)."""
    env = {"PROMETHEUS_MULTIPROC_DIR": metrics_folder}
    return ray_serve.deployment(
        ray_serve.ingress()(GatewayDeployment),
        name="gateway",
        max_ongoing_requests=10_000,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.server.drain_timeout_s,
        max_surge_percent=100,  # start the replacement first
        ray_actor_options={**placement, "runtime_env": {"env_vars": env}},
        logging_config={"enable_access_log": False, "encoding": "JSON"},
    )


def settings_of(config: PlatformConfig) -> dict[str, object]:
    """`config` for replicas, without the database's password, which the gateway does not need."""
    return config.model_dump(mode="json", exclude={"retrieval": {"database"}})
