"""Gateways for `benchmarks.systems.paired_gateways`: one mounted at a path, and one that in addition has no telemetry."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

import deployments.gateway
import serve.gateway.app
from benchmarks.systems.mock_engine import Message, Receive, Send
from deployments.gateway import GatewayDeployment
from serve.request.lifecycle import Attempt
from serve.telemetry.request_telemetry import RequestTelemetry


class Nothing:
    """Replaces the metrics: every attribute and method exists and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Self:
        return self

    def __call__(self, *_: object) -> Self:
        """Any method of a metric or of the metrics object."""
        return self


class EmptyPage(Collector):
    """Replaces the metrics page."""

    def __init__(self, *_: object) -> None:
        pass

    def collect(self) -> Iterable[Metric]:
        """No metrics."""
        return ()


class NoTelemetry(RequestTelemetry):
    """Records nothing."""

    def record_attempt(self, attempt: Attempt) -> None:
        """Record nothing."""

    def record_decision(self, *_: object) -> None:
        """Record nothing."""

    def record_completion(self, *_: object, **__: object) -> None:
        """Record nothing."""

    def record_rejection(self, *_: object) -> None:
        """Record nothing."""

    def export_quotas(self, *_: object) -> None:
        """Export nothing."""


class MountedGateway(GatewayDeployment):
    """The gateway mounted at a path."""

    async def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve for the application behind this replica's port."""
        app = self._app

        async def mounted(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["path"] = scope["path"].removeprefix(scope["root_path"])
            await app(scope, receive, send)

        return mounted


class SilentGateway(MountedGateway):
    """The mounted gateway without telemetry. Its replica has a separate process, where telemetry is replaced."""

    def __init__(self, config: Mapping[str, object], engine_token: str) -> None:
        deployments.gateway.Metrics, deployments.gateway.Exposition = Nothing, EmptyPage  # type: ignore[misc, assignment]
        serve.gateway.app.RequestTelemetry = NoTelemetry  # type: ignore[misc]
        super().__init__(config, engine_token)
