"""What a Ray Serve config file names: one builder for each application, for clusters that Serve's own config deploys.

The chart renders such a config from the same YAML that `gearbox up` reads. What a builder gets as arguments is what its
replicas are replaced for; what is changed while they run is in the config's `deployments` (`user_config`, bounds).
"""

import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from deployments.gateway import gateway_deployment, settings_of
from deployments.placement import IN_CLUSTER
from serve.config.platform import ConfigError, PlatformConfig

METRICS_FOLDER = "/tmp/gearbox-metrics"  # of one pod: its gateways are counted together
_TOKEN = b"gearbox-engine-token"


class Given(BaseModel):
    """A builder's arguments: sections of the platform's configuration, and the folder of what the application serves."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, object]
    folder: Path | None = None

    @property
    def place(self) -> Path:
        """The folder, of an application that serves what is in one. Raises `ConfigError`."""
        if self.folder is None:
            raise ConfigError("the application's arguments name no 'folder'")
        return self.folder


def gateway(args: Mapping[str, object]) -> ray_serve.Application:
    """The gateway. `config` holds the sections whose change replaces its replicas; the others come by `user_config`."""
    config = PlatformConfig.model_validate(Given.model_validate(args).config)
    return gateway_deployment(config, METRICS_FOLDER, IN_CLUSTER).bind(settings_of(config), engine_token())


def variant(args: Mapping[str, object]) -> ray_serve.Application:
    """The engines of the one variant in `config`, with the weights in `folder`."""
    from deployments.variant import variant_app  # imports vLLM

    given = Given.model_validate(args)
    config = PlatformConfig.model_validate(given.config)
    (one,) = config.variants
    return variant_app(config, one, given.place, engine_token(), pools=True)


def retrieval(args: Mapping[str, object]) -> ray_serve.Application:
    """Embedder, in `folder`, and pipelines. The database's address is in the environment of the pods."""
    from deployments.retrieval import retrieval_app

    given = Given.model_validate(args)
    config = PlatformConfig.model_validate(given.config)
    if config.retrieval is None:
        raise ConfigError("the configuration of the application 'retrieval' has no section 'retrieval'")
    return retrieval_app(config.retrieval, None, given.place, config.server.drain_timeout_s, IN_CLUSTER)


def engine_token() -> str:
    """What the gateway shows to the engines: made once for each cluster, and kept where only the cluster can read it."""
    _internal_kv_put(_TOKEN, secrets.token_urlsafe(24).encode(), overwrite=False)
    return _internal_kv_get(_TOKEN).decode()
