"""Gateway for fuzzing, alone in its process: three variants on one engine, and a scripted retrieval.

`python -m benchmarks.api.fuzz_gateway --port N --engine URL` serves it under uvicorn.
"""

import argparse
from collections.abc import Collection

import uvicorn

from benchmarks.lib.sample_catalog import make_config, three_gears
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.gateway.app import Gateway
from serve.gateway.auth import hash_key
from serve.gateway.replica_health import ReplicaHealth
from serve.telemetry.metrics import Metrics

KEY = "gbx-fuzzing"


class OneReplica:
    """Replica directory in which every variant has the same single engine."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.health = ReplicaHealth()

    def urls(self, variant: str) -> list[str]:
        """The only one."""
        return [self._url]

    async def choose(self, variant: str, avoid: Collection[str] = ()) -> str:
        """URL of the engine."""
        return self._url


class Forgetful(FakeRetrieval):
    """Scripted retrieval that records no calls, because the run measures memory."""

    async def call(self, method: str, **arguments: object) -> object:
        """A call of the scripted retrieval."""
        try:
            return await super().call(method, **arguments)
        finally:
            self.calls.clear()


def gateway(engine_url: str) -> Gateway:
    """The ASGI application."""
    variants = {variant.name: variant for variant in three_gears()}
    for variant in variants.values():
        variant.live.been_up = True
    config = make_config(access={"keys": [{"sha256": hash_key(KEY), "tenant": "fuzzing"}]}, retrieval={})
    return Gateway(config, variants, OneReplica(engine_url), Metrics(), "engine-token", Forgetful())


def main() -> None:
    """Serve it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True, metavar="URL")
    args = parser.parse_args()
    uvicorn.run(gateway(args.engine), host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
