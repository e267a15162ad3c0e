"""Tenants and spend dashboard: usage and cost by tenant, and rate limit utilization."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.panels import GREEN, RED, YELLOW, Column, Line, chart, dashboard, stat, table
from helm.dashboards.promql import MODEL, RANGE, VARIANT, count, rate, share

TENANT = f'{MODEL}, tenant=~"$tenant"'
SPENT = f'{VARIANT}, tenant=~"$tenant"'
BY_TENANT = "model, tenant"


def build() -> Dashboard:
    """The dashboard."""
    cost, requests, tokens = "gearbox_cost_usd_total", "gearbox_tenant_requests_total", "gearbox_tenant_tokens_total"
    answered = f'{TENANT}, outcome="answered"'
    used = f"max by (model, tenant, limit) (gearbox_rate_limit_utilization_ratio{{{TENANT}}})"
    now = [
        stat(
            "Spent",
            "Cost of answers in the shown time at the configured prices. More than expected: sort 'Tenants compared' by"
            " cost, and see 'Spend by variant' for where it goes.",
            "currencyUSD", count(cost, "", SPENT), decimals=4,
        ),
        stat(
            "Requests",
            "Requests of the chosen tenants in the shown time, whatever became of them. None from a tenant that should "
            "be there: its key may have been changed.",
            "short", count(requests, "", TENANT), decimals=0,
        ),
        stat(
            "Rejected",
            "Share of requests that were rejected: rate limits, load, budgets, bad requests. When it rises, see the "
            "codes in 'Rejected requests' on the Router dashboard.",
            "percentunit", share(requests, "", TENANT, 'outcome="rejected"', RANGE), decimals=1,
            levels=((None, GREEN), (0.05, YELLOW), (0.2, RED)),
        ),
        stat(
            "Highest rate-limit utilization",
            "The highest rate-limit utilization of any tenant in this minute. Near 1, further requests are rejected: see "
            "'Rate-limit utilization' for the tenant, and the GearboxRateLimitNearlyReached runbook.",
            "percentunit", f"max(gearbox_rate_limit_utilization_ratio{{{TENANT}}})", decimals=0,
            levels=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
    ]  # fmt: skip
    who = [
        table(
            "Tenants compared",
            "Usage of each tenant in the shown time; 'other' is every tenant beyond "
            "observability.tenant_cardinality_limit. A high cost per 1,000 answers means long prompts or an expensive "
            "profile; many rejected requests mean a limit that does not fit.",
            BY_TENANT,
            Column("Cost", count(cost, BY_TENANT, SPENT), "currencyUSD", 4),
            Column("Requests", count(requests, BY_TENANT, TENANT), "short", 0),
            Column("Rejected", share(requests, BY_TENANT, TENANT, 'outcome="rejected"', RANGE), "percentunit", 1),
            Column("Failed", share(requests, BY_TENANT, TENANT, 'outcome="failed"', RANGE), "percentunit", 1),
            Column("Input tokens", count(tokens, BY_TENANT, f'{TENANT}, kind="input"'), "short", 0),
            Column("Output tokens", count(tokens, BY_TENANT, f'{TENANT}, kind="output"'), "short", 0),
            Column(
                "USD per 1,000 answers",
                f"1000 * {rate(cost, BY_TENANT, SPENT, RANGE)} / {rate(requests, BY_TENANT, answered, RANGE)}",
                "currencyUSD", 4,
            ),
        ),
    ]  # fmt: skip
    spend = [
        chart(
            "Spend by tenant",
            "USD per hour at the present rate. A tenant that jumps may have a loop in its client: look at its requests "
            "below and set a limit on its key.",
            "currencyUSD", Line(f"3600 * {rate(cost, BY_TENANT, SPENT)}", "{{tenant}}"), stacked=True, span=12,
        ),
        chart(
            "Spend by variant",
            "USD per hour at the present rate, by variant. Most of it on full while profiles ask for cheap means that "
            "the cheaper variants are full or down.",
            "currencyUSD", Line(f"3600 * {rate(cost, 'model, variant', SPENT)}", "{{model}}:{{variant}}"),
            stacked=True, span=12,
        ),
        chart(
            "Spend by tenant and variant",
            "USD per hour at the present rate: what each tenant's budget makes it pay for. Compare a tenant's bands to "
            "see what a cheaper profile would save.",
            "currencyUSD",
            Line(f"3600 * {rate(cost, 'model, tenant, variant', SPENT)}", "{{tenant}} on {{variant}}"),
            stacked=True, span=24,
        ),
    ]  # fmt: skip
    use = [
        chart(
            "Requests by tenant",
            "Requests per second. One tenant that takes most of it while others are rejected needs a limit of its own.",
            "reqps", Line(rate(requests, BY_TENANT, TENANT), "{{tenant}}"), stacked=True,
        ),
        chart(
            "Requests by outcome",
            "Requests by outcome: answered, rejected, failed, cancelled. failed is the platform's fault; cancelled "
            "in numbers are clients that give up waiting.",
            "reqps", Line(rate(requests, "outcome", TENANT), "{{outcome}}"), stacked=True,
        ),
        chart(
            "Rejected by tenant",
            "Share of each tenant's requests that were rejected. One tenant only: its limits or its requests; all of "
            "them: load, see the GearboxOverloaded runbook.",
            "percentunit", Line(share(requests, BY_TENANT, TENANT, 'outcome="rejected"'), "{{tenant}}"), top=1,
        ),
        chart(
            "Output tokens by tenant",
            "Tokens written per second. It is what takes the engines' time: a tenant that leads here leads in cost.",
            "short", Line(rate(tokens, BY_TENANT, f'{TENANT}, kind="output"'), "{{tenant}}"), stacked=True,
        ),
        chart(
            "Input tokens by tenant",
            "Tokens read per second. A jump without more requests is longer prompts, often retrieval with too many "
            "sources.",
            "short", Line(rate(tokens, BY_TENANT, f'{TENANT}, kind="input"'), "{{tenant}}"), stacked=True,
        ),
        chart(
            "Engine time by tenant",
            "Share of the engines' time that each tenant's admitted requests took in the last ten seconds. When engines are "
            "full, tenants that ask for more get parts in proportion to the weights of their keys (access.keys[].weight); "
            "one that gets less here either asks for less or has limits that cannot be met.",
            "percentunit",
            Line(f"sum by ({BY_TENANT}) (gearbox_admission_tenant_share_ratio{{{TENANT}}})", "{{tenant}}"), stacked=True,
        ),
        chart(
            "Rate-limit utilization",
            "Used share of each tenant's rate limits in this minute. At 1 the tenant's requests are rejected until the "
            "next minute: raise its limit or have it slow down.",
            "percentunit", Line(used, "{{tenant}} {{limit}}"), levels=((None, GREEN), (0.9, RED)),
        ),
        chart(
            "Rate-limit store failures",
            "Failed operations of the rate-limit store per second. admit: keys with limits got 503 or were not counted, "
            "as access.on_rate_limit_store_failure says; charge: tokens are missing from their limit; read: the "
            "utilization above is stale; idempotency: requests with an Idempotency-Key got 503, or could be done twice. "
            "Above 0: see whether the store is up.",
            "ops", Line(rate("gearbox_rate_limit_store_failures_total", "operation", MODEL), "{{operation}}"),
        ),
        chart(
            "Idempotent requests",
            "Requests with an Idempotency-Key per second: answers that were stored, and replayed to a client that sent its "
            "request again. Many replays mean that clients lose their connections; too_large answers are not protected.",
            "reqps", Line(rate("gearbox_idempotent_requests_total", "outcome", MODEL), "{{outcome}}"),
        ),
    ]  # fmt: skip
    return dashboard(
        "gearbox-tenants",
        "Gearbox: tenants and spend",
        "Who uses how much, at what cost, and who is near a limit.",
        ("model", "variant", "tenant"),
        (("Now", now), ("Who", who), ("Spend", spend), ("Use", use)),
    )
