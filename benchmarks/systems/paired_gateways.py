"""Gateways with different telemetry, side by side before the same engines, each at its own path.

They share the engines, HAProxy and the machine's current state, which therefore do not differ between them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from serve.card import Card
from serve.config.platform import PlatformConfig
from serve.config.sections import ObservabilityConfig

if TYPE_CHECKING:
    from ray.serve import RunTarget

NAMES = ("off", "metrics", "log", "traces")  # each adds a kind of telemetry to the one before; "log" is the default


def observability_settings(name: str, collector: str) -> ObservabilityConfig:
    """Observability settings of the gateway `name`, besides metrics."""
    return ObservabilityConfig(
        log_requests=name in ("log", "traces"), otlp_endpoint=collector if name == "traces" else None
    )


def gateways(
    config: PlatformConfig, catalog: Mapping[str, Card], routing: Mapping[str, object], engine_token: str,
    folder: Path, collector: str, names: Iterable[str] = NAMES,
) -> "list[RunTarget]":  # fmt: skip
    """The applications, each served below `/NAME`, its metrics on `metrics_port(config.server.metrics_port, NAME)`.

    Args:
        folder: of the metrics of all, one folder each.
        collector: OTLP endpoint of the gateway with traces.
    """
    from ray import serve as ray_serve  # not at the top: Ray reads its environment when it is imported

    import deployments.gateway
    from benchmarks.systems.uninstrumented_gateway import MountedGateway, SilentGateway

    targets = []
    own = deployments.gateway.GatewayDeployment
    for name in names:
        server = config.server.model_copy(update={"metrics_port": metrics_port(config.server.metrics_port, name)})
        variation = config.model_copy(
            update={"server": server, "observability": observability_settings(name, collector)}
        )
        deployments.gateway.GatewayDeployment = SilentGateway if name == "off" else MountedGateway  # type: ignore[misc]
        app = deployments.gateway.gateway_app(variation, catalog, routing, engine_token, str(folder / name))
        targets.append(ray_serve.RunTarget(app, name=f"gateway-{name}", route_prefix=f"/{name}"))
    deployments.gateway.GatewayDeployment = own  # type: ignore[misc]
    return targets


def metrics_port(platforms: int, name: str) -> int:
    """The port of `name`'s metrics beside a platform whose own are on port `platforms`; the four between are Ray's."""
    return platforms + 5 + NAMES.index(name)
