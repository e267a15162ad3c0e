"""Grounding of one request: its options and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool

from serve.config.sections import Name
from serve.request.json_types import INTEGRAL
from serve.request.synthetic_completion import SyntheticCompletion

GroundingOutcome = Literal["used", "shrunk", "skipped", "abstained", "unsupported", "computed", "agent", "off"]


class GroundingOptions(BaseModel):
    """Grounding options of one request: its `retrieval` field over the deployment's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    collection: Name | None
    mode: Name
    top_k: Annotated[int, Field(ge=1, le=20, strict=True), INTEGRAL]
    filters: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    on_budget: Literal["shrink", "skip", "refuse"]
    on_unsupported: Literal["abstain", "answer"]
    unverified: Literal["quote", "mark"]
    tools: tuple[Literal["calculator", "clock"], ...]
    agent: StrictBool = False  # the model calls the tools itself, document search among them
    # the parameter that requests grounding; None: the request is grounded by default
    _parameter: str | None = PrivateAttr(default=None)

    @property
    def parameter(self) -> str | None:
        """The `param` of errors about the collection; None: the request is grounded by default."""
        return self._parameter

    @property
    def names_collection(self) -> bool:
        """Whether the request names its collection."""
        return self._parameter in ("model", "retrieval.collection")


@dataclass(slots=True)
class Grounding:
    """Result of grounding one request."""

    options: GroundingOptions
    question: str = ""
    quotable: bool = False  # whether a quote may be appended to the answer
    outcome: GroundingOutcome = "off"
    explanation: str | None = None
    support: float | None = None
    passages: Sequence[Mapping[str, Any]] = ()
    bare: Mapping[str, Any] = field(
        default_factory=dict
    )  # original values of the request's fields that grounding changed
    started: float = 0.0  # start of the search, perf_counter seconds
    ms: float = 0.0  # duration of the search
    check_ms: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # durations by pipeline component
    starts_ms: Mapping[str, float] = field(
        default_factory=dict
    )  # start of each component, from the start of the search
    tools: list[dict[str, Any]] = field(default_factory=list)
    direct: SyntheticCompletion | None = None  # an answer without a variant
    sentences: list[dict[str, Any]] | None = None  # None: not checked
    quoted: int | None = None  # number of the source quoted after an unsupported answer

    @property
    def answer(self) -> str | None:
        """The text of an answer without a variant."""
        return self.direct.text if self.direct else None

    @property
    def reason(self) -> str:
        """Why no variant was needed."""
        return self.outcome

    def public(self) -> dict[str, object]:
        """The grounding fields of the response's `gearbox` object."""
        return {
            "grounded": self._grounded(),
            "citations": self._citations(),
            "sentences": self.sentences,
            "quoted": self.quoted,
            "tools": self.tools,
            "retrieval": {
                "outcome": self.outcome, "why": self.explanation, "collection": self.options.collection, "mode": self.options.mode,
                "support": self.support, "passages": len(self.passages), "ms": self.ms, "check_ms": self.check_ms,
                "timings_ms": self.timings_ms,
            },
        }  # fmt: skip

    def _grounded(self) -> bool | None:
        """Whether sources support every claim of the answer; None if unchecked."""
        if self.outcome == "computed":
            return True
        if self.outcome in ("agent", "off"):
            return None
        if not self.passages:
            return False
        if self.sentences is None:
            return None
        claims = [sentence["supported"] for sentence in self.sentences if sentence["supported"] is not None]
        return bool(claims) and all(claims)

    def _citations(self) -> list[dict[str, Any]]:
        """The sources that support sentences of the answer, or were quoted."""
        cited = {sentence["source"] for sentence in self.sentences or () if sentence["supported"]} | {self.quoted}
        return [
            {name: passage[name] for name in ("n", "source", "title", "heading", "page", "score", "quote")}
            for passage in self.passages
            if passage["n"] in cited
        ]
