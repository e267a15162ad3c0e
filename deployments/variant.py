"""Variant deployment: one variant as a Ray Serve application, vLLM in Serve's LLMServer on the replica's own port."""

from pathlib import Path

from ray import serve as ray_serve
from ray.serve.llm import LLMConfig, LLMServer, build_llm_deployment

from deployments.cpu_priority import lower_engine_priority
from deployments.engine_cpu_time import report_engine_cpu_time
from deployments.fetch import wait_for_file
from deployments.placement import POOL
from deployments.ray_internals import at_process_start, before_engine_start
from serve.card import CARD_FILE
from serve.config.platform import PlatformConfig
from serve.config.sections import VariantConfig

#: Environment of every engine: no telemetry, no download at run time.
ENGINE_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
#: Of an eager engine on CPUs. vLLM compiles helpers of sampling and log-probabilities at their first use even there: on two slow
#: cores 6.4 s in which the engine answers nobody, instead of 20 ms for the call.
EAGER_CPU_ENV = {"TORCH_COMPILE_DISABLE": "1"}


async def prepare_engine(folder: Path) -> None:
    """Wait until `folder` has complete weights: the card is written last."""
    await wait_for_file(folder / CARD_FILE)


async def prepare_cpu_engine(folder: Path) -> None:
    """The same for an engine without a GPU, whose CPU time is reported."""
    report_engine_cpu_time()
    await prepare_engine(folder)


def variant_app(
    config: PlatformConfig, variant: VariantConfig, folder: Path, token: str, pools: bool = False
) -> ray_serve.Application:
    """The Serve application that serves the weights in `folder`.

    It has no route on the public port: the gateway reaches its replicas directly, with `token`.

    Args:
        pools: place the replicas in the variant's node pool; false on a single machine.
    """
    serving_args = config.serving_args(variant)
    engine_args = {
        **serving_args,
        "enable_per_request_metrics": True,
        "enable_prompt_tokens_details": True,
        "api_key": [token],
    }
    resources, bounds = variant.resources, variant.replicas
    eager = EAGER_CPU_ENV if serving_args.get("enforce_eager") and not resources.gpus else {}
    worker = {"CPU": resources.cpus, "GPU": resources.gpus} if resources.gpus else {"CPU": resources.cpus}
    placement = {"placement_group_bundle_label_selector": [{POOL: resources.pool}]} if pools else {}
    actor: dict[str, object] = {"num_cpus": 0}
    if resources.memory_gb:
        actor["memory"] = int(resources.memory_gb * 2**30)
    llm_config = LLMConfig(
        model_loading_config={"model_id": config.model.name, "model_source": str(folder)},
        engine_kwargs=engine_args,
        accelerator_type=resources.accelerator,
        accelerator_config=None if resources.gpus else {"kind": "cpu"},
        placement_group_config={"bundle_per_worker": worker},
        runtime_env={
            "env_vars": {**ENGINE_ENV, **eager, **config.env, **variant.env, **at_process_start(lower_engine_priority)}
        },
        callback_config={
            "callback_class": before_engine_start(prepare_engine if resources.gpus else prepare_cpu_engine)
        },
        log_engine_metrics=False,  # the engine's own Prometheus endpoint is scraped instead
        deployment_config={
            "name": variant.name,
            "autoscaling_config": {
                "min_replicas": bounds.min,
                "max_replicas": bounds.max,
                "target_ongoing_requests": bounds.target_in_flight,
            },
            "max_ongoing_requests": 1_000,  # the gateway bounds the queue; the engine batches what it receives
            "health_check_period_s": 2,
            "graceful_shutdown_timeout_s": config.server.drain_timeout_s,
            "max_surge_percent": 100 if bounds.surge else 0,
            **placement,
            "logging_config": {"enable_access_log": False, "encoding": "JSON"},
            "ray_actor_options": actor,
        },
    )
    return build_llm_deployment(llm_config, name_prefix="engine:", deployment_cls=ray_serve.ingress()(LLMServer))
