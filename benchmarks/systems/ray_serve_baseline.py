"""Ray Serve LLM's `build_openai_app` with the same engine, as a baseline: `python -m benchmarks.systems.ray_serve_baseline --help`."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

UP = "all replicas are up"  # in the log, when they are


def logical_cpus(replicas: int) -> int:
    """CPUs that Ray is to count with, however many there are: with too few, it waits for more without end, and starts no ingress.

    Serve LLM places each replica with two, for its actor and for the engine's worker, and its ingress with one.
    """
    return max(os.cpu_count() or 1, 2 * replicas + 2)


def main() -> None:
    """Start, report it, and wait for the end; the caller stops the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1, help="of the engine")
    parser.add_argument("--engine-args", type=json.loads, default={})
    parser.add_argument("--env", type=json.loads, default={}, help="environment of the engine's processes")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    import ray
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        address="local",
        num_cpus=logical_cpus(args.replicas),
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    ray_serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    config = LLMConfig(
        model_loading_config={"model_id": args.model, "model_source": str(args.weights)},
        engine_kwargs=args.engine_args,
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        runtime_env={"env_vars": args.env},
        log_engine_metrics=False,
        deployment_config={
            "autoscaling_config": {"min_replicas": args.replicas, "max_replicas": args.replicas},
            "max_ongoing_requests": 1_000,
            "logging_config": {"enable_access_log": False},
        },
    )
    ray_serve.run(build_openai_app({"llm_configs": [config]}), route_prefix="/")
    print(UP, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
