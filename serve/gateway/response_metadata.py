"""Response metadata: the `x-gearbox-` headers and the `gearbox` object, for answers of a variant and of the gateway itself."""

from serve.request.grounding import Grounding
from serve.request.lifecycle import Attempt
from serve.request.synthetic_completion import SyntheticCompletion


def routing_headers(attempt: Attempt) -> list[tuple[str, str]]:
    """Headers of a variant's response: the decision, predicted times in ms, and the gateway's overhead in ms."""
    decision, expected = attempt.decision, attempt.decision.chosen.prediction.expected
    waited_ms = attempt.waited_s * 1000
    return [
        ("x-gearbox-variant", decision.variant.name),
        ("x-gearbox-reason", decision.reason),
        ("x-gearbox-predicted-ttft-ms", f"{waited_ms + expected.ttft_ms:.1f}"),
        ("x-gearbox-predicted-e2e-ms", f"{waited_ms + expected.e2e_ms:.1f}"),
        ("x-gearbox-quality", f"{decision.variant.quality.quality:.4f}"),
        ("x-gearbox-overhead-ms", f"{attempt.overhead_s * 1000:.3f}"),
        *_grounding_headers(attempt.request.grounding),
    ]


def gearbox_object(attempt: Attempt) -> dict[str, object]:
    """The `gearbox` object of a variant's response: decision, predictions and measurements, times in ms."""
    request = attempt.request
    return {
        "variant": attempt.variant.name,
        "reason": attempt.decision.reason,
        "quality": attempt.quality,
        "missed": _missed(attempt),
        "waited_ms": _rounded(attempt.waited_s * 1000),
        "ttft_ms": _rounded(attempt.ttft_ms),
        "tpot_ms": _rounded(attempt.tpot_ms),
        "e2e_ms": _rounded(attempt.e2e_ms),
        "cost_usd": attempt.cost_usd,
        "attempts": len(request.attempts),
        "migrations": request.migrations,
        "predicted": attempt.decision.chosen.predictions(attempt.waited_s * 1000),
        **(request.grounding.public() if request.grounding else {}),
    }


def _missed(attempt: Attempt) -> str | None:
    """The limits that were not to be met when the variant was chosen, in words: those that had passed by then, then by prediction."""
    request, budget = attempt.request, attempt.request.budget
    elapsed_ms = (attempt.dispatched - request.arrived) * 1000
    passed = [
        f"the {name} limit of {limit:.0f} ms had passed"
        for name, limit in (("ttft", budget.ttft_ms), ("e2e", budget.e2e_ms))
        if limit is not None and limit < elapsed_ms
    ]
    return ", ".join(filter(None, (*passed, attempt.decision.chosen.explanation))) or None


def synthetic_headers(grounding: Grounding) -> list[tuple[str, str]]:
    """Headers of a completion that the gateway produced without a variant."""
    return [("x-gearbox-variant", "none"), ("x-gearbox-reason", grounding.reason), *_grounding_headers(grounding)]


def synthetic_gearbox_object(grounding: Grounding, answer: SyntheticCompletion, e2e_ms: float) -> dict[str, object]:
    """The `gearbox` object of a completion that the gateway produced without a variant, within `e2e_ms`."""
    e2e_ms = round(e2e_ms, 2)
    return {
        "variant": None, "reason": grounding.reason, "quality": None, "missed": None, "waited_ms": 0.0, "ttft_ms": e2e_ms, "tpot_ms": None,
        "e2e_ms": e2e_ms, "cost_usd": answer.cost_usd, "attempts": answer.attempts, "migrations": [], "predicted": {}, **grounding.public(),
    }  # fmt: skip


def _grounding_headers(grounding: Grounding | None) -> list[tuple[str, str]]:
    return [("x-gearbox-retrieval", grounding.outcome)] if grounding else []


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
