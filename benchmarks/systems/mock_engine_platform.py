"""Gearbox's gateway on Ray Serve with a mock engine behind it: `python -m benchmarks.systems.mock_engine_platform --port N`.

The same deployments, HAProxy set-up and Ray environment as `gearbox up`; only the engine is a mock.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.systems.mock_engine import MODEL, InstantEngine
from deployments.ray_internals import ray_environment
from serve.card import Card, Profile, Quality, Step, TpotPoint, TtftPoint
from serve.config.platform import PlatformConfig

VARIANT = "instant"


class InstantDeployment:
    """The mock engine, served on its replica's own port like the real engines."""

    async def __serve_build_asgi_app__(self) -> InstantEngine:
        """Called by Serve for the application behind this replica's port."""
        return InstantEngine()


def instant_card() -> Card:
    """A card without weights: it predicts no latency and full quality."""
    return Card(
        name=VARIANT,
        model=MODEL,
        parent=None,
        steps=(Step(technique="load", tool="benchmarks.systems.mock_engine"),),
        weights_digest="sha256:" + "0" * 64,
        parameters=1,
        bytes_on_disk=1,
        max_model_len=8192,
        chars_per_token=4.0,
        quality=Quality(
            quality=1.0,
            derivation="none",
            perplexity=1.0,
            kl_to_full=0.0,
            kl_ci95=(0.0, 0.0),
            top1_agreement=1.0,
            tokens=1,
            set="none",
            set_digest="none",
        ),
        profile=Profile(
            hardware="none",
            engine="benchmarks.systems.mock_engine",
            ttft=(TtftPoint(prompt_tokens=16, concurrency=1, p50_ms=1, p95_ms=1),),
            tpot=(TpotPoint(concurrency=1, p50_ms=1, p95_ms=1),),
            prefill_tokens_per_s=1e6,
            decode_tokens_per_s=1e6,
            startup_s=1,
            resident_bytes=1,
            price_usd_per_hour=0.03,
        ),
        reproduce="python -m benchmarks.overhead.gateway instant",
    )


def main() -> None:
    """Start, report it, and wait for the end; the caller stops the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="and the ten ports after it")
    parser.add_argument("--over-handle", action="store_true", help="reach the engine over a deployment handle instead")
    parser.add_argument(
        "--side-by-side", metavar="COLLECTOR", help="the gateways of benchmarks.systems.paired_gateways instead"
    )
    args = parser.parse_args()
    port = args.port
    config = PlatformConfig.model_validate(
        {
            "model": {"name": MODEL, "source": "none"},
            "server": {"port": port, "metrics_port": port + 1, "max_waiting_per_replica": 1000},
            "access": {"allow_anonymous": True},
            "variants": [{"name": VARIANT, "weights": "none"}],
        }
    )
    folder = Path(tempfile.mkdtemp(prefix="gb-"))  # short: socket paths in it are limited to 97 characters
    for name in ("metrics", "haproxy"):
        (folder / name).mkdir()
    os.environ.update({**ray_environment(config, folder / "haproxy"), **os.environ})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    import ray
    from ray import serve as ray_serve

    import deployments.gateway
    from benchmarks.systems import paired_gateways
    from benchmarks.systems.handle_transport import HandleEngine, HandleGateway
    from deployments.replicas import app_name

    if args.over_handle:
        deployments.gateway.GatewayDeployment = HandleGateway
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray_serve.start(http_options={"host": config.server.host, "port": config.server.port})
    engine = ray_serve.deployment(
        ray_serve.ingress()(HandleEngine if args.over_handle else InstantDeployment),
        name=f"engine:{VARIANT}",
        max_ongoing_requests=1_000,  # as the real engines' deployments
        health_check_period_s=2,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    ).bind()
    cards, metrics = {VARIANT: instant_card()}, folder / "metrics"
    if args.side_by_side:
        gateways = paired_gateways.gateways(config, cards, {}, "none", metrics, args.side_by_side)
    else:
        gateway = deployments.gateway.gateway_app(config, cards, {}, "none", str(metrics))
        gateways = [ray_serve.RunTarget(gateway, name="gateway", route_prefix="/")]
    ray_serve.run_many([ray_serve.RunTarget(engine, name=app_name(VARIANT), route_prefix=None), *gateways])
    print("up", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
