"""Ray Serve application builders: one for each application in the Serve config that the chart renders for KubeRay.

The chart renders that config from the same YAML that `gearbox up` reads. A change of a builder's arguments replaces the
application's replicas; a change of the config's `deployments` (`user_config`, bounds) is applied to running ones.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve

from deployments.gateway import gateway_deployment, settings_of
from deployments.placement import IN_CLUSTER
from deployments.ray_internals import shared_value
from serve.config.platform import ConfigError, PlatformConfig

METRICS_FOLDER = "/tmp/gearbox-metrics"  # of one pod, whose gateways export their metrics together
_TOKEN_KEY = b"gearbox-engine-token"


class BuilderArguments(BaseModel):
    """Arguments of a builder: sections of the platform's configuration, and the folder with the model that is served."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, object]
    folder: Path | None = None

    @property
    def model_folder(self) -> Path:
        """The folder, for applications that serve a model. Raises `ConfigError` where none is set."""
        if self.folder is None:
            raise ConfigError("the application's arguments have no 'folder'")
        return self.folder


def gateway(args: Mapping[str, object]) -> ray_serve.Application:
    """The gateway. `config` holds the sections whose change replaces its replicas; the others come by `user_config`."""
    config = PlatformConfig.model_validate(BuilderArguments.model_validate(args).config)
    return gateway_deployment(config, METRICS_FOLDER, IN_CLUSTER).bind(settings_of(config), engine_token())


def variant(args: Mapping[str, object]) -> ray_serve.Application:
    """The engines of the single variant in `config`, with the weights in `folder`."""
    from deployments.variant import variant_app  # imports vLLM

    arguments = BuilderArguments.model_validate(args)
    config = PlatformConfig.model_validate(arguments.config)
    (variant_config,) = config.variants
    return variant_app(config, variant_config, arguments.model_folder, engine_token(), pools=True)


def retrieval(args: Mapping[str, object]) -> ray_serve.Application:
    """The embedder, from `folder`, and the pipelines. The database's address is in the environment of the pods."""
    from deployments.retrieval import retrieval_app

    arguments = BuilderArguments.model_validate(args)
    config = PlatformConfig.model_validate(arguments.config)
    if config.retrieval is None:
        raise ConfigError("the configuration of the application 'retrieval' has no section 'retrieval'")
    return retrieval_app(config.retrieval, None, arguments.model_folder, config.server.drain_timeout_s, IN_CLUSTER)


def engine_token() -> str:
    """The key with which the gateway authenticates at the engines: generated once per cluster, stored in Ray's control store."""
    return shared_value(_TOKEN_KEY, secrets.token_urlsafe(24).encode()).decode()
