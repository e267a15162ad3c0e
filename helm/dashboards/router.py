"""Router dashboard: prediction accuracy, waiting requests, excluded variants, stability of the choices, and routing latency."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.panels import GREEN, RED, Line, chart, dashboard, stat
from helm.dashboards.promql import BY_VARIANT, MODEL, RANGE, VARIANT, count, mean, quantile, rate, share

NAME = "{{model}}:{{variant}}"
BOUND = ((None, RED), (0.9, GREEN))
COVERED = 'covered="yes"'


def build() -> Dashboard:
    """The dashboard."""
    decided = "gearbox_decision_seconds"
    now = [
        stat(
            "Decisions",
            "Decisions in the shown time, those after a failover among them. None while clients send requests means "
            "that they are rejected before routing: see 'Rejected requests'.",
            "short", count(f"{decided}_count", "", MODEL), decimals=0,
        ),
        stat(
            "95% bound coverage",
            "Share of answers within their predicted 95% bound; the target is 95%. Below 90%, see which variant and "
            "metric in 'Coverage by variant' and the GearboxPredictionCoverageLow runbook.",
            "percentunit", share("gearbox_prediction_coverage_total", "", VARIANT, COVERED, RANGE), levels=BOUND, decimals=1,
        ),
        stat(
            "Decision time p99",
            "Time within which 99% of the decisions were made. Beyond a millisecond the gateways lack CPU: add gateway "
            "replicas or cores.",
            "s", quantile(0.99, decided, "", MODEL, RANGE), decimals=2,
        ),
        stat(
            "Failovers",
            "Requests in the shown time that were moved away from a variant before their first token. Any number that "
            "grows is a variant that breaks: see 'Failovers by variant'.",
            "short", count("gearbox_failovers_total", "", VARIANT), decimals=0,
        ),
    ]  # fmt: skip

    def against(what: str) -> list[Line]:
        return [
            Line(quantile(0.5, f"gearbox_{what}_seconds", BY_VARIANT, VARIANT), f"{NAME} measured"),
            Line(quantile(0.5, f"gearbox_predicted_{what}_seconds", BY_VARIANT, VARIANT), f"{NAME} predicted"),
        ]

    def ratio(what: str) -> str:
        predicted = mean(f"gearbox_predicted_{what}_seconds", BY_VARIANT, VARIANT)
        return f"({predicted}) / ({mean(f'gearbox_{what}_seconds', BY_VARIANT, VARIANT)})"

    same = "The two lines of a variant should lie together. "
    predictions = [
        chart(
            "First token: predicted and measured",
            same + "Predicted far below measured, the variant is slower than it was: wait for the predictor to learn, "
            "then look for other load on its machine.",
            "s", *against("ttft"),
        ),
        chart(
            "Per token: predicted and measured",
            same + "Predicted below measured at high load, the engine runs more requests together than the card's "
            "profile measured: profile it again.",
            "s", *against("tpot"),
        ),
        chart(
            "End to end: predicted and measured",
            same + "Here also the guess of the answer's length counts: when only this one is off, answers are longer or"
            " shorter than expected.",
            "s", *against("e2e"),
        ),
        chart(
            "Coverage by variant",
            "Share of answers within their predicted 95% bound. Above 0.95 the bounds are wider than needed and good "
            "variants are ruled out; below 0.9 budgets are missed: see the GearboxPredictionCoverageLow runbook.",
            "percentunit",
            Line(share("gearbox_prediction_coverage_total", f"{BY_VARIANT}, metric", VARIANT, COVERED), f"{NAME} {{{{metric}}}}"),
            top=1, levels=BOUND, floor=False,
        ),
        chart(
            "Prediction error",
            "How far predictions were off, as a share of what was measured: the middle and the worst tenth. It falls as"
            " the predictor learns; if it does not, what changes the times is not among its features.",
            "percentunit",
            Line(quantile(0.5, "gearbox_prediction_error_ratio", "metric", VARIANT), "{{metric}} p50"),
            Line(quantile(0.9, "gearbox_prediction_error_ratio", "metric", VARIANT), "{{metric}} p90"),
        ),
        chart(
            "Predicted over measured",
            "Mean predicted end to end time over the mean measured one; 1 is right on the whole. Below 1 the router "
            "expects too short times, above it leaves fast variants unused.",
            "none", Line(ratio("e2e"), NAME), levels=((None, "transparent"), (1, GREEN)),
        ),
    ]  # fmt: skip
    choices = [
        chart(
            "Reasons",
            "Attempts per second by the rule that chose the variant. Much nearest_miss means that budgets "
            "cannot be met with what is deployed; much explore costs what it learns.",
            "reqps", Line(rate("gearbox_attempts_total", "reason", VARIANT), "{{reason}}"), stacked=True,
        ),
        chart(
            "Excluded candidates",
            "Candidates that routing decisions excluded, by rule. full and unavailable are capacity, ttft, tpot and e2e are "
            "load or tight budgets, resting means that others use the same hardware better, silent that nothing came from its "
            "engines for longer than predicted, min_quality and max_cost are the callers' own wish.",
            "short", Line(rate("gearbox_candidates_excluded_total", "rule", VARIANT), "{{rule}}"), stacked=True,
        ),
        chart(
            "Excluded candidates by variant",
            "The same by variant. One that is always excluded costs memory for nothing: take it out of the catalog or "
            "find out which rule it is.",
            "short", Line(rate("gearbox_candidates_excluded_total", BY_VARIANT, VARIANT), NAME), stacked=True,
        ),
        chart(
            "Oscillation",
            "Share of a profile's requests that went elsewhere than the one before. High and steady is a router that "
            "swings between two variants: their predictions are too alike, or too slow to follow the load.",
            "percentunit",
            Line(
                f"{rate('gearbox_route_switches_total', 'model, profile', MODEL)} / "
                f"{rate('gearbox_attempts_total', 'model, profile', MODEL)}",
                "{{model}}@{{profile}}",
            ),
        ),
        chart(
            "Failovers by variant",
            "Requests moved away from a variant before their first token. cause=engine is a crashed or refusing "
            "replica, cause=context a prompt that was longer than estimated.",
            "reqps",
            Line(rate("gearbox_failovers_total", f"{BY_VARIANT}, cause", VARIANT), f"{NAME} {{{{cause}}}}"),
        ),
        chart(
            "Continued streams by variant",
            "Streams that another replica or variant continued, by the variant they left. connection is a replica that died, "
            "stalled one that stood still, engine_error one that reported an error.",
            "reqps",
            Line(rate("gearbox_migrations_total", f"{BY_VARIANT}, cause", VARIANT), f"{NAME} {{{{cause}}}}"),
        ),
        chart(
            "Hedged requests by variant",
            "Requests sent to a second replica too because the first was late, by its variant. won: the second "
            "replica answered first. If most are lost, the first replica answers in time anyway and server.hedging brings little.",
            "reqps",
            Line(rate("gearbox_hedges_total", f"{BY_VARIANT}, outcome", VARIANT), f"{NAME} {{{{outcome}}}}"),
        ),
        chart(
            "Gateways started",
            "Gateway processes started within an hour. More than changes and autoscaling explain are gateways that were killed or "
            "replaced: each took its connections with it.",
            "short",
            Line(f"sum(increase(gearbox_gateway_starts_total{{{MODEL}}}[1h]))", "started"),
        ),
        chart(
            "Ejected replicas",
            "Replicas that got no requests until a probe succeeded, within an hour. unreachable is one that died; stalled "
            "one that stood still: look for a lack of CPU when it repeats.",
            "short",
            Line(
                f"sum by ({BY_VARIANT}, cause) (increase(gearbox_replica_ejections_total{{{VARIANT}}}[1h]))",
                f"{NAME} {{{{cause}}}}",
            ),
        ),
        chart(
            "Rejected requests",
            "Requests answered with an error before any variant's answer. overloaded and budget_under_load call for "
            "replicas, impossible_budget for another catalog or looser budgets, the rest are the client's own or on a "
            "runbook.",
            "reqps", Line(rate("gearbox_requests_rejected_total", "code", MODEL), "{{code}}"), stacked=True,
        ),
        chart(
            "Outcomes of attempts",
            "How attempts at a variant ended. engine_error and interrupted are the platform's fault: see the replica's "
            "log; cancelled in numbers are clients that give up waiting, or hedges.",
            "reqps", Line(rate("gearbox_attempts_total", "outcome", VARIANT), "{{outcome}}"), stacked=True,
        ),
        chart(
            "Decision time",
            "The router's own time for one decision. It grows with the number of variants; if it grows otherwise, the "
            "gateways lack CPU.",
            "s",
            Line(quantile(0.5, decided, "", MODEL), "p50"), Line(quantile(0.99, decided, "", MODEL), "p99"),
        ),
        chart(
            "Gateway overhead",
            "Time from a request's last byte to its dispatch, without retrieval. When p99 grows and p50 does not, "
            "gateways are short of CPU in bursts: add gateway replicas.",
            "s",
            Line(quantile(0.5, "gearbox_overhead_seconds", "", MODEL), "p50"),
            Line(quantile(0.99, "gearbox_overhead_seconds", "", MODEL), "p99"),
        ),
    ]  # fmt: skip
    admission = [
        chart(
            "Waiting in the gateways",
            "Requests that wait until an engine has room for them within the budgets. It rises in bursts and falls after "
            "them; if it stays, the load is more than the budgets allow: add replicas or loosen the limits. Open are "
            "also those that are answered, and searches, embeddings and uploads.",
            "short",
            Line(f"sum by (model) (gearbox_admission_requests_waiting{{{MODEL}}})", "{{model}}"),
            Line(f"sum by (model) (gearbox_requests_open{{{MODEL}}})", "{{model}} open"),
        ),
        chart(
            "Wait for a place",
            "Time that requests waited in a gateway before they started, of those that waited. It counts in their TTFT and E2E.",
            "s",
            Line(quantile(0.5, "gearbox_admission_wait_seconds", BY_VARIANT, VARIANT), f"{NAME} p50"),
            Line(quantile(0.95, "gearbox_admission_wait_seconds", BY_VARIANT, VARIANT), f"{NAME} p95"),
        ),
        chart(
            "Learned margins",
            "Predicted times, so many times as long, must be within the limits: the highest of each profile. At 2.5, the most, "
            "answers are late whatever is predicted: compare predicted and measured times above.",
            "none", Line(f"max by (model, profile) (gearbox_admission_margin_ratio{{{MODEL}}})", "{{model}}@{{profile}}"),
        ),
    ]  # fmt: skip
    return dashboard(
        "gearbox-router",
        "Gearbox: router",
        "Predictions against what happened, what waits, what was ruled out and why, oscillation, failovers and overhead.",
        ("model", "variant"),
        (("Now", now), ("Predictions", predictions), ("Admission", admission), ("Choices", choices)),
    )
