"""Variants dashboard: properties, load and health of each variant, from the metrics of gateway, engine and Ray Serve."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.panels import GREEN, RED, Column, Line, chart, dashboard, table
from helm.dashboards.promql import BY_VARIANT, VARIANT, count, gauge, mean, quantile, rate

NAME = "{{model}}:{{variant}}"
NEARLY_FULL = ((None, GREEN), (0.9, RED))


def build() -> Dashboard:
    """The dashboard."""

    def live(name: str) -> str:
        return gauge(name, BY_VARIANT, VARIANT)

    facts = "technique, parent, weights"
    cards = [
        table(
            "Cards",
            "What each variant is and what it was measured to be, from its card, beside what is running. 'Up' of 0 "
            "means that it cannot answer: see 'Replicas' and the GearboxVariantDown runbook.",
            BY_VARIANT,
            Column("", gauge("gearbox_variant_info", f"{BY_VARIANT}, {facts}", VARIANT), "none"),
            Column("Up", live("gearbox_variant_up"), "none"),
            Column("Quality", live("gearbox_variant_quality_ratio"), "none", 3),
            Column("Weights size", live("gearbox_variant_weights_bytes"), "bytes"),
            Column("Memory of a replica", live("gearbox_variant_resident_bytes"), "bytes"),
            Column("Price per hour", live("gearbox_variant_price_usd_per_hour"), "currencyUSD", 3),
            Column("Replicas", live("gearbox_variant_replicas"), "none"),
            Column("Replicas at most", live("gearbox_variant_replicas_max"), "none"),
            Column("Cold starts", count("gearbox_cold_start_seconds_count", BY_VARIANT, VARIANT), "short", 0),
            facts=facts,
        ),
    ]
    gateway = [
        chart(
            "Up",
            "1 while a variant can answer or would start from zero, else 0. At 0 its requests go to other variants, and"
            " those pinned to it are rejected: look for a crashed replica in Ray's dashboard and log.",
            "none", Line(live("gearbox_variant_up"), NAME), top=1,
        ),
        chart(
            "Replicas",
            "Healthy replicas, how many there may be, and ejected ones. At the upper line with requests waiting, the variant "
            "cannot grow: raise its replicas.max or add nodes. Below it with a queue, the autoscaler is waiting for room. "
            "Replicas that stay ejected: see the GearboxReplicaEjected runbook.",
            "none",
            Line(live("gearbox_variant_replicas"), NAME), Line(live("gearbox_variant_replicas_max"), f"{NAME} at most"),
            Line(live("gearbox_variant_replicas_ejected"), f"{NAME} ejected"),
        ),
        chart(
            "Cold starts",
            "Time that 95% of the requests which met a variant at zero waited for its replica. When it hurts budgets, "
            "set its replicas.min to 1, or compile less at start.",
            "s", Line(quantile(0.95, "gearbox_cold_start_seconds", BY_VARIANT, VARIANT), NAME),
        ),
        chart(
            "Requests at the variants",
            "Requests in flight as the gateways count them. Much more than running and waiting together means that "
            "requests are stuck between gateway and engine.",
            "short", Line(f"sum by ({BY_VARIANT}) (gearbox_requests_in_flight{{{VARIANT}}})", NAME),
        ),
        chart(
            "Running in the engines",
            "Requests that the engines work on, at the gateways' last look. A flat top is the engine's own limit of "
            "requests that run together: more load will wait.",
            "short", Line(live("gearbox_requests_running"), NAME),
        ),
        chart(
            "Waiting in the engines",
            "Requests queued in the engines. A queue that stays means too few replicas; the router avoids the variant "
            "and budgets are missed. Add replicas, or let fewer wait with server.max_waiting_per_replica.",
            "short", Line(live("gearbox_requests_waiting"), NAME),
        ),
        chart(
            "KV cache in use",
            "Used share of the fullest replica's KV cache. Close to 1, requests wait or are preempted: give the engine "
            "more memory, shorten its context or add replicas.",
            "percentunit", Line(live("gearbox_variant_kv_cache_usage_ratio"), NAME), top=1, levels=NEARLY_FULL,
        ),
        chart(
            "p95 wait in the engine",
            "Time that 95% of the requests waited before an engine started them, as the engine reports. If it is"
            " a large part of the time to the first token, the variant needs replicas, not a faster model.",
            "s", Line(quantile(0.95, "gearbox_queue_seconds", BY_VARIANT, VARIANT), NAME),
        ),
        chart(
            "Tokens",
            "Tokens per second read and written. Input without output for minutes is an engine that hangs or answers "
            "that are cut off.",
            "short", Line(rate("gearbox_tokens_total", f"{BY_VARIANT}, kind", VARIANT), f"{NAME} {{{{kind}}}}"),
        ),
    ]  # fmt: skip
    tokens_per_second = rate("vllm:generation_tokens_total", BY_VARIANT, VARIANT)
    replicas = live("gearbox_variant_replicas")
    price = live("gearbox_variant_price_usd_per_hour")
    hits = rate("vllm:prefix_cache_hits_total", BY_VARIANT, VARIANT)
    lookups = rate("vllm:prefix_cache_queries_total", BY_VARIANT, VARIANT)
    engines = [
        chart(
            "vLLM requests",
            "What the engines themselves report as running and waiting, summed over replicas. It should agree with the "
            "gateways' view above; if not, a gateway sees stale state or a target is not scraped.",
            "short",
            Line(f"sum by ({BY_VARIANT}) (vllm:num_requests_running{{{VARIANT}}})", f"{NAME} running"),
            Line(f"sum by ({BY_VARIANT}) (vllm:num_requests_waiting{{{VARIANT}}})", f"{NAME} waiting"),
        ),
        chart(
            "vLLM KV cache by replica",
            "Used share of each replica's KV cache. One replica far above the others of its variant gets the long "
            "prompts: check how requests are spread over replicas.",
            "percentunit",
            Line(f"max by ({BY_VARIANT}, instance) (vllm:kv_cache_usage_perc{{{VARIANT}}})", f"{NAME} {{{{instance}}}}"),
            top=1, levels=NEARLY_FULL,
        ),
        chart(
            "Prefix cache hits",
            "Share of prompt tokens that were found in the prefix cache. Low with repeated prompts means that replicas "
            "do not see the same prompts twice or the cache is too small.",
            "percentunit", Line(f"{hits} / {lookups}", NAME), top=1,
        ),
        chart(
            "Output tokens per replica",
            "Output tokens per second and healthy replica: vLLM's count over Gearbox's. Compare with the throughput on "
            "the card: far below it with a queue, the machine is shared or throttled.",
            "short", Line(f"{tokens_per_second} / on ({BY_VARIANT}) {replicas}", NAME),
        ),
        chart(
            "USD per million output tokens",
            "Price of all replicas over the tokens that they really write. It is high when replicas idle: let the "
            "variant scale to fewer, or to zero.",
            "currencyUSD",
            Line(f"1e6 / 3600 * {price} * on ({BY_VARIANT}) {replicas} / on ({BY_VARIANT}) ({tokens_per_second} > 0)",
                 NAME),
        ),
        chart(
            "First token outside the engine",
            "Mean time to the first token as the gateway measures it, less the engine's own. It is the way there and "
            "back: beyond some tens of milliseconds, the gateways or the proxies lack CPU.",
            "s",
            Line(
                f"({mean('gearbox_ttft_seconds', BY_VARIANT, VARIANT)}) - on ({BY_VARIANT}) "
                f"({mean('vllm:time_to_first_token_seconds', BY_VARIANT, VARIANT)})",
                NAME,
            ),
            floor=False,
        ),
        chart(
            "Preemptions",
            "Requests that the engine set aside for want of KV cache, and will compute again. Any that last mean lost "
            "work: fewer requests together, a shorter context or more memory.",
            "reqps", Line(rate("vllm:num_preemptions_total", BY_VARIANT, VARIANT), NAME),
        ),
        chart(
            "p95 between tokens",
            "Time within which 95% of the tokens followed the one before, as the engine measures it. It grows with "
            "requests that run together; a budget's tpot limit is held against it.",
            "s", Line(quantile(0.95, "vllm:inter_token_latency_seconds", BY_VARIANT, VARIANT), NAME),
        ),
        chart(
            "p95 prefill",
            "Time within which 95% of the prompts were read. It grows with their length and with requests beside them; "
            "long ones belong on a variant with a fast prefill.",
            "s", Line(quantile(0.95, "vllm:request_prefill_time_seconds", BY_VARIANT, VARIANT), NAME),
        ),
    ]  # fmt: skip
    ray = [
        chart(
            "Ray Serve: requests in replicas",
            "Requests that Ray Serve sees in each variant's replicas. If it stays up while the engines are idle, "
            "replies are not being taken: look at the proxies.",
            "short",
            Line(f"sum by ({BY_VARIANT}) (ray_serve_replica_processing_queries{{{VARIANT}}})", NAME),
        ),
        chart(
            "Ray Serve: healthy replicas",
            "Replicas whose health check passes, as Ray Serve counts them. Fewer than the gateways' replicas means that"
            " the controller has just lost one; it starts another by itself.",
            "none",
            Line(f"sum by ({BY_VARIANT}) (ray_serve_deployment_replica_healthy{{{VARIANT}}})", NAME),
        ),
        chart(
            "Ray Serve: replicas started",
            "Replicas started, by variant, over an hour. More than autoscaling explains is a crash loop: see the "
            "replica's log under Ray's session folder.",
            "short",
            # each replica has a series of its own, which is 1 from its first sample on
            Line(f"count by ({BY_VARIANT}) (count_over_time(ray_serve_deployment_replica_starts_total{{{VARIANT}}}[1h]))", NAME),
        ),
    ]  # fmt: skip
    return dashboard(
        "gearbox-variants",
        "Gearbox: variants",
        "What each variant is, and how loaded and healthy: by the gateway, by vLLM and by Ray Serve.",
        ("model", "variant"),
        (("Cards", cards), ("As the gateways see them", gateway), ("As vLLM sees them", engines),
         ("As Ray Serve sees them", ray)),
    )  # fmt: skip
