"""Trade-offs dashboard: quality against latency and cost, and budget attainment."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.panels import GREEN, RED, YELLOW, Column, Line, chart, dashboard, scatter, stat, table
from helm.dashboards.promql import BY_VARIANT, MODEL, RANGE, VARIANT, count, gauge, mean, quantile, rate, share

PROFILE = f'{MODEL}, profile=~"$profile"'
BOTH = f'{VARIANT}, profile=~"$profile"'
BY_PROFILE = "model, profile"
VARIANT_NAME = "{{model}}:{{variant}}"
PROFILE_NAME = "{{model}}@{{profile}}"
MET, MISSED = 'met="yes"', 'met="no"'
NAMED = f'{PROFILE}, profile!="custom"'
OBJECTIVE = ((None, RED), (0.95, GREEN))
ATTAINED = ((None, RED), (0.9, YELLOW), (0.95, GREEN))


def cost_of_answers(by: str, window: str | None = None) -> str:
    """USD per 1,000 answers."""
    of = {"window": window} if window else {}
    answers = rate("gearbox_requests_total", by, f'{VARIANT}, outcome="answered"', **of)
    return f"1000 * {rate('gearbox_cost_usd_total', by, VARIANT, **of)} / {answers}"


def build() -> Dashboard:
    """The dashboard."""
    quality = gauge("gearbox_variant_quality_ratio", BY_VARIANT, VARIANT)
    slowest = quantile(0.95, "gearbox_e2e_seconds", BY_VARIANT, BOTH, RANGE)
    quality_column = Column("Quality", quality, "none", 3)
    e2e_column = Column("p95 end to end", slowest, "s", 2)
    cost_column = Column("USD per 1,000 answers", cost_of_answers(BY_VARIANT, RANGE), "currencyUSD", 4)
    to_variant = rate("gearbox_attempts_total", "model, profile, variant", BOTH)

    now = [
        stat(
            "Budgets met",
            "Share of requests in the shown time whose whole budget was met; the objective is 95%. Below it, see which "
            "limit was missed in 'Limits missed' and by which profile in 'Budget attainment'.",
            "percentunit", share("gearbox_budget_requests_total", "", PROFILE, MET, RANGE), levels=ATTAINED, decimals=1,
        ),
        stat(
            "p95 end to end",
            "Time within which 95% of the answers in the shown time were complete. When it grows, see which variant "
            "slowed down in 'p95 end to end by variant' and whether it is queueing on the Variants dashboard.",
            "s", quantile(0.95, "gearbox_e2e_seconds", "", BOTH, RANGE), decimals=2,
        ),
        stat(
            "USD per 1,000 answers",
            "Cost at the configured prices for 1,000 complete answers. When it grows, see in 'Share of traffic' whether"
            " more goes to dearer variants, and on the Tenants dashboard for whom.",
            "currencyUSD", cost_of_answers("", RANGE), decimals=4,
        ),
        stat(
            "Mean quality of answers",
            "Quality of the variants that answered, relative to full, averaged over requests. When it falls, the router"
            " is trading quality for latency or cost: see 'Quality of answers by profile', and raise a profile's "
            "min_quality if that is too much.",
            "none", mean("gearbox_answer_quality_ratio", "", PROFILE, RANGE), decimals=3,
        ),
    ]  # fmt: skip
    trade = [
        scatter(
            "Quality against p95 end to end",
            "Each point is a variant: better is up and to the left. A variant with another one above and left of it "
            "earns its place by cost only; if it is not cheaper either, take it out of the catalog.",
            BY_VARIANT, e2e_column, quality_column,
        ),
        scatter(
            "Quality against cost",
            "Each point is a variant: better is up and to the left. A variant that costs more than a better one is "
            "worth keeping only for its speed; check its price and its replicas.",
            BY_VARIANT, cost_column, quality_column,
        ),
        table(
            "Variants compared",
            "Quality from the card beside the latency, cost and traffic measured in the shown time. A variant slower "
            "than its neighbour of higher quality is overloaded or misconfigured: see its queue on the Variants "
            "dashboard.",
            BY_VARIANT, quality_column,
            Column("p95 first token", quantile(0.95, "gearbox_ttft_seconds", BY_VARIANT, BOTH, RANGE), "s", 3),
            Column("p95 per token", quantile(0.95, "gearbox_tpot_seconds", BY_VARIANT, BOTH, RANGE), "s", 3),
            e2e_column, cost_column,
            Column("Attempts", count("gearbox_attempts_total", BY_VARIANT, BOTH), "short", 0),
            Column(
                "Share of traffic",
                f"{rate('gearbox_attempts_total', BY_VARIANT, BOTH, RANGE)} / on (model) group_left "
                f"{rate('gearbox_attempts_total', 'model', PROFILE, RANGE)}",
                "percentunit", 1,
            ),
            height=7,
        ),
    ]  # fmt: skip
    over_time = [
        chart(
            "Quality of answers by profile",
            "Mean quality of the variants that answered each profile's requests. A falling line means that its requests"
            " are degraded: under load, by failovers or by exploration. Compare with 'Reasons' on the Router dashboard.",
            "none", Line(mean("gearbox_answer_quality_ratio", BY_PROFILE, PROFILE), PROFILE_NAME), top=1, floor=False,
        ),
        chart(
            "p95 end to end by variant",
            "Time within which 95% of a variant's answers were complete. One line rising alone is that variant's load "
            "or health; all rising together is the machine: add replicas or lower the limit of waiting requests.",
            "s", Line(quantile(0.95, "gearbox_e2e_seconds", BY_VARIANT, BOTH), VARIANT_NAME),
        ),
        chart(
            "p95 first token by variant",
            "Time within which 95% of a variant's answers started. It rises before everything else when requests queue: "
            "see 'Waiting in the engines' on the Variants dashboard.",
            "s", Line(quantile(0.95, "gearbox_ttft_seconds", BY_VARIANT, BOTH), VARIANT_NAME),
        ),
        chart(
            "Cost of 1,000 answers by variant",
            "USD at the configured prices. It follows the length of prompts and answers; a jump without a change of "
            "prices means that requests became longer.",
            "currencyUSD", Line(cost_of_answers(BY_VARIANT), VARIANT_NAME),
        ),
        chart(
            "Share of traffic",
            "Share of its model's attempts that each variant gets. A sudden shift is the router's reaction to load, "
            "failure or a changed budget; 'Excluded candidates by variant' on the Router dashboard says which.",
            "percentunit",
            Line(
                f"{rate('gearbox_attempts_total', BY_VARIANT, BOTH)} / on (model) group_left "
                f"{rate('gearbox_attempts_total', 'model', PROFILE)}",
                VARIANT_NAME,
            ),
            stacked=True, top=1,
        ),
        chart(
            "Budget attainment",
            "Share of each profile's requests whose whole budget was met; the objective is 95%. Below it, look at "
            "'Limits missed' for the kind, then either make room (replicas, a faster variant) or loosen the profile.",
            "percentunit", Line(share("gearbox_budget_requests_total", BY_PROFILE, PROFILE, MET), PROFILE_NAME),
            top=1, levels=OBJECTIVE,
        ),
        chart(
            "Limits missed",
            "Limits of budgets that were not met, by kind. ttft and tpot call for faster or more replicas, cost and "
            "quality for another catalog, rejected and failed for the rejected requests and failovers on the Router dashboard.",
            "reqps", Line(rate("gearbox_budget_violations_total", "model, kind", PROFILE), "{{kind}}"), stacked=True,
        ),
        chart(
            "Burn of the error budget",
            "How many times faster than allowed the 5% of missed budgets are used up; 1 uses them up exactly. Alerts "
            "are at 8 over an hour and 4 over six. Named profiles only: limits that clients make up are their own.",
            "none",
            Line(
                f"{share('gearbox_budget_requests_total', BY_PROFILE, NAMED, MISSED, '1h')} / 0.05",
                PROFILE_NAME,
            ),
            levels=((None, GREEN), (1, YELLOW), (8, RED)),
        ),
        chart(
            "Output tokens",
            "Tokens per second that each variant wrote. A variant that has requests but writes no tokens hangs: restart"
            " its replica.",
            "short", Line(rate("gearbox_tokens_total", BY_VARIANT, f'{VARIANT}, kind="output"'), VARIANT_NAME),
            stacked=True,
        ),
    ]  # fmt: skip
    profiles = [
        table(
            "What each profile got",
            "Requests of each budget profile in the shown time and what they were given. A profile with low attainment "
            "asks for more than the catalog can give: compare its limits with 'Variants compared'.",
            BY_PROFILE,
            Column("Requests", count("gearbox_budget_requests_total", BY_PROFILE, PROFILE), "short", 0),
            Column("Met", share("gearbox_budget_requests_total", BY_PROFILE, PROFILE, MET, RANGE), "percentunit", 1),
            Column("Mean quality", mean("gearbox_answer_quality_ratio", BY_PROFILE, PROFILE, RANGE), "none", 3),
            Column("p95 first token", quantile(0.95, "gearbox_ttft_seconds", BY_PROFILE, BOTH, RANGE), "s", 3),
            Column("p95 per token", quantile(0.95, "gearbox_tpot_seconds", BY_PROFILE, BOTH, RANGE), "s", 3),
            Column("p95 end to end", quantile(0.95, "gearbox_e2e_seconds", BY_PROFILE, BOTH, RANGE), "s", 2),
            Column(
                "USD per 1,000 requests",
                f"1000 * {rate('gearbox_profile_cost_usd_total', BY_PROFILE, PROFILE, RANGE)} / "
                f"{rate('gearbox_budget_requests_total', BY_PROFILE, PROFILE, RANGE)}",
                "currencyUSD", 4,
            ),
            span=14,
        ),
        chart(
            "Where each profile went",
            "Attempts per second by profile and variant. A profile that should always get the same variant but does not"
            " is being degraded or explored with.",
            "reqps", Line(to_variant, "{{profile}} to {{variant}}"), stacked=True, span=10,
        ),
    ]  # fmt: skip
    return dashboard(
        "gearbox-tradeoffs",
        "Gearbox: trade-offs",
        "Quality against latency and cost: what was traded, for whom, and whether budgets were met.",
        ("model", "variant", "profile"),
        (("Now", now), ("The trade", trade), ("Over time", over_time), ("Budget profiles", profiles)),
    )
