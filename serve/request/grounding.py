"""Grounding of one request: its options and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool

from serve.config.platform import Name
from serve.request.json_types import INTEGRAL
from serve.request.synthetic_completion import SyntheticCompletion

Outcome = Literal["used", "shrunk", "skipped", "abstained", "unsupported", "computed", "agent", "off"]


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
    agent: StrictBool = False  # the model calls the tools itself, and searches with one
    # what of the request names the collection, or asks for the default one; None: `always` does
    _asked_by: str | None = PrivateAttr(default=None)

    @property
    def asked_by(self) -> str | None:
        """The parameter that an error about the collection is of; None: the request asked for none."""
        return self._asked_by

    @property
    def names_collection(self) -> bool:
        """Whether the request names its collection."""
        return self._asked_by in ("model", "retrieval.collection")


@dataclass(slots=True)
class Grounding:
    """Result of grounding one request."""

    options: GroundingOptions
    question: str = ""
    quotable: bool = False  # whether text may be added to the answer
    outcome: Outcome = "off"
    why: str | None = None
    support: float | None = None
    passages: Sequence[Mapping[str, Any]] = ()
    bare: Mapping[str, Any] = field(
        default_factory=dict
    )  # fields of the request that the sources changed, as they were
    began: float = 0.0  # of searching, perf_counter seconds
    ms: float = 0.0  # of searching
    check_ms: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # by the pipeline's components
    starts_ms: Mapping[str, float] = field(default_factory=dict)  # when they began, after the search did
    tools: list[dict[str, Any]] = field(default_factory=list)
    direct: SyntheticCompletion | None = None  # the answer itself, where it is known before a variant is asked
    sentences: list[dict[str, Any]] | None = None  # None: not checked
    quoted: int | None = None  # number of the source that was quoted after an answer that no source supports

    @property
    def answer(self) -> str | None:
        """The text of the answer, where it is known before a variant is asked."""
        return self.direct.text if self.direct else None

    @property
    def reason(self) -> str:
        """Why the answer was known before a variant was asked."""
        return self.outcome

    def public(self) -> dict[str, object]:
        """What the answer's `gearbox` object says of it."""
        return {
            "grounded": self._grounded(),
            "citations": self._citations(),
            "sentences": self.sentences,
            "quoted": self.quoted,
            "tools": self.tools,
            "retrieval": {
                "outcome": self.outcome, "why": self.why, "collection": self.options.collection, "mode": self.options.mode,
                "support": self.support, "passages": len(self.passages), "ms": self.ms, "check_ms": self.check_ms,
                "timings_ms": self.timings_ms,
            },
        }  # fmt: skip

    def _grounded(self) -> bool | None:
        """Whether sources support every claim of the answer; None where that was not checked."""
        if self.outcome == "computed":
            return True
        if self.outcome in ("agent", "off"):
            return None
        if not self.passages:
            return False
        if self.sentences is None:
            return None
        claims = [one["supported"] for one in self.sentences if one["supported"] is not None]
        return bool(claims) and all(claims)

    def _citations(self) -> list[dict[str, Any]]:
        """The sources that the answer's sentences rest on."""
        cited = {one["source"] for one in self.sentences or () if one["supported"]} | {self.quoted}
        return [
            {name: passage[name] for name in ("n", "source", "title", "heading", "page", "score", "quote")}
            for passage in self.passages
            if passage["n"] in cited
        ]
