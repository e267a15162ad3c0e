"""Budgets: limits on a request's latency, cost and quality, resolved from profile, body and headers."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serve.errors import RequestError
from serve.validation import first_reason


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    if isinstance(value, str) and "_" in value:
        raise ValueError("expected a number without underscores")
    return value


# The bounds come before the validator: pydantic then describes them as `minimum`, `maximum`.
Milliseconds = Annotated[float, Field(gt=0, le=86_400_000, allow_inf_nan=False), BeforeValidator(_no_flag)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_no_flag)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_flag)]


#: Deadline of the first token of a request without one, or that cannot meet it: bounds how long others overtake it.
BEST_EFFORT_WAIT_MS = 60_000.0
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # estimated quantiles of predicted times, which can be compared with limits


class Budget(BaseModel):
    """Limits of one request. A limit that is None is not checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_ms: Milliseconds | None = Field(default=None, description="time to first token")
    tpot_ms: Milliseconds | None = Field(default=None, description="time per output token after the first")
    e2e_ms: Milliseconds | None = Field(default=None, description="end to end")
    max_cost: Cost | None = Field(default=None, description="USD for this request")
    min_quality: Share | None = Field(default=None, description="relative to `full`")
    objective: Literal["quality", "cost", "latency"] = Field(
        default="quality", description="what to favour among the variants that fit"
    )
    on_no_candidate: Literal["degrade", "reject"] = Field(
        default="degrade", description="what to do when no variant fits: take the nearest miss, or refuse"
    )

    @property
    def timed(self) -> bool:
        """Whether the budget has a time limit."""
        return self.ttft_ms is not None or self.tpot_ms is not None or self.e2e_ms is not None

    def first_token_by_ms(self, decode_ms: float) -> float:
        """Deadline of the first token, ms after the arrival and not before it, where the tokens after the first take `decode_ms`."""
        deadlines = [] if self.ttft_ms is None else [self.ttft_ms]
        if self.e2e_ms is not None:
            deadlines.append(self.e2e_ms - decode_ms)
        return max(min(deadlines, default=BEST_EFFORT_WAIT_MS), 0.0)


DEFAULT_PROFILES: Mapping[str, Budget] = {
    "best": Budget(objective="quality"),
    "balanced": Budget(objective="latency", min_quality=0.9),
    "fast": Budget(objective="latency"),
    "cheap": Budget(objective="cost"),
}

HEADERS: Mapping[str, str] = {
    "x-gearbox-slo-ttft-ms": "ttft_ms",
    "x-gearbox-slo-tpot-ms": "tpot_ms",
    "x-gearbox-slo-e2e-ms": "e2e_ms",
    "x-gearbox-max-cost": "max_cost",
    "x-gearbox-min-quality": "min_quality",
    "x-gearbox-objective": "objective",
    "x-gearbox-on-no-candidate": "on_no_candidate",
    "x-llm-d-slo-ttft-ms": "ttft_ms",
    "x-llm-d-slo-tpot-ms": "tpot_ms",
}


def resolve_budget(base: Budget, body: object, headers: Mapping[str, str]) -> Budget:
    """The budget of a request: `base` (its profile), then the body's `budget` fields, then the headers on top.

    If a request has both spellings of a header, the `x-gearbox-` header counts.

    Raises:
        RequestError: 400 with the offending header or field as `param`.
    """
    fields: dict[str, object] = {}
    origin: dict[str, str] = {}
    if body is not None:
        if not isinstance(body, dict):
            raise RequestError(400, "'budget' must be an object", param="budget", code="invalid_budget")
        _check(body, {name: f"budget.{name}" for name in body}, strict=True)  # in JSON, a string is not a number
        fields.update(body)
        origin.update({name: f"budget.{name}" for name in body})
    for header, name in reversed(list(HEADERS.items())):
        if (text := headers.get(header)) is not None:
            if origin.get(name) in HEADERS:
                _check({name: fields[name]}, origin, strict=False)  # validate the ignored spelling too
            fields[name] = text
            origin[name] = header
    if not fields:
        return base
    return _check({**base.model_dump(), **fields}, origin, strict=False)


def _check(fields: Mapping[str, object], origin: Mapping[str, str], *, strict: bool) -> Budget:
    try:
        return Budget.model_validate(fields, strict=strict)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        param = origin.get(name, "budget")
        raise RequestError(400, f"{param}: {first_reason(error)}", param=param, code="invalid_budget") from error


def remaining(budget: Budget, elapsed_s: float) -> Budget:
    """`budget` less the elapsed time.

    A limit that has passed cannot be met: nothing else is given up for it. Where the request would rather be rejected, 1 ms is left.
    """
    if elapsed_s < 0.001 or (budget.ttft_ms is None and budget.e2e_ms is None):
        return budget
    passed = 1.0 if budget.on_no_candidate == "reject" else None
    left = {
        name: rest if (rest := limit - elapsed_s * 1000) > 1.0 else passed
        for name, limit in (("ttft_ms", budget.ttft_ms), ("e2e_ms", budget.e2e_ms))
        if limit is not None
    }
    return budget.model_copy(update=left)
