"""Response models of the OpenAPI description: generation, routing, the catalog, documents, health and errors."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.budget import Budget
from serve.card import Card
from serve.gateway.openapi_requests import OpenModel, ToolCall
from serve.request.grounding import GroundingOutcome
from serve.routing.router import REASONS


class _ClosedModel(BaseModel):
    """A JSON object that the gateway defines: it has no other fields."""

    model_config = ConfigDict(extra="forbid")


# ------------------------------------------------------------------------------------------------------ chat, completions


class Predicted(_ClosedModel):
    """Predicted medians and 95% bounds of the chosen variant, ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float
    ttft_p95_ms: float
    tpot_p95_ms: float
    e2e_p95_ms: float


class Citation(_ClosedModel):
    """A source that sentences of the answer rest on."""

    n: int = Field(description="its number in the prompt")
    source: str
    title: str | None
    heading: str | None
    page: int | None
    score: float
    quote: str


class Sentence(_ClosedModel):
    """A sentence of the answer, held against the sources."""

    choice: int = Field(description="index of the choice that it is of")
    start: int = Field(description="first character")
    end: int
    supported: bool | None = Field(description="null: it claims nothing that could be checked")
    score: float | None
    source: int | None = Field(description="number of the source that supports it")


class ToolUse(_ClosedModel):
    """A tool that was used for the answer."""

    name: str
    input: Any
    output: str


class RetrievalReport(_ClosedModel):
    """What was done to ground the answer."""

    outcome: GroundingOutcome
    why: str | None
    collection: str | None
    mode: str
    support: float | None
    passages: int
    ms: float
    check_ms: float | None
    timings_ms: dict[str, float] = Field(description="by the pipeline's components")


class StreamMigration(_ClosedModel):
    """A stream that another engine continued."""

    from_: str = Field(alias="from", description="the variant that broke off")
    from_replica: str | None = Field(description="a name without the replica's address")
    to: str
    to_replica: str | None
    at_token: int = Field(description="tokens of the answer before it")
    reason: Literal["connection", "stalled", "engine_error"]


class Gearbox(OpenModel):
    """What was chosen, and what the request really took and cost."""

    variant: str | None = Field(description="null: answered without a variant")
    reason: str = Field(
        description=f"why that variant: {', '.join(REASONS)}; without one: computed, abstained, agent",
    )
    quality: float | None
    missed: str | None = Field(description="the limits that the prediction does not meet")
    waited_ms: float = Field(description="wait in the gateway until an engine had room")
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float
    cost_usd: float
    attempts: int = Field(
        description="replicas that it was sent to: also those that failed, and that a hedge was faster than"
    )
    migrations: list[StreamMigration] = Field(description="where the stream went on; empty for most")
    predicted: Predicted | dict[str, float] = Field(description="empty without a variant")
    grounded: bool | None = Field(default=None, description="whether sources support every claim; null: not checked")
    citations: list[Citation] = Field(default=[])
    sentences: list[Sentence] | None = None
    quoted: int | None = None
    tools: list[ToolUse] = Field(default=[])
    retrieval: RetrievalReport | None = None


class Usage(OpenModel):
    """Tokens of the request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(OpenModel):
    """The message that was generated."""

    role: str
    content: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(OpenModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(OpenModel):
    """OpenAI's chat completion, with what Gearbox did."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    gearbox: Gearbox


class TextChoice(OpenModel):
    """One answer."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class TextCompletion(OpenModel):
    """OpenAI's completion, with what Gearbox did."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    gearbox: Gearbox


class Delta(OpenModel):
    """What a chunk adds to an answer."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="parts of calls, by index")


class ChunkChoice(OpenModel):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(OpenModel):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="empty in the chunk with the usage")
    usage: Usage | None = None
    gearbox: Gearbox | None = Field(default=None, description="on the last chunk")


class TextCompletionChunk(OpenModel):
    """One event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice] = Field(description="empty in the chunk with the usage")
    usage: Usage | None = None
    gearbox: Gearbox | None = Field(default=None, description="on the last chunk")


class ErrorDetail(_ClosedModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="field, header or parameter at fault")
    code: str = Field(description="the reason, for programs")


class Error(_ClosedModel):
    """Every error, in OpenAI's shape."""

    error: ErrorDetail


# ---------------------------------------------------------------------------------------------------- routing, catalog


class Candidate(_ClosedModel):
    """One variant as the router saw it."""

    variant: str
    quality: float
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    predicted_e2e_ms: float
    predicted_ttft_p95_ms: float
    predicted_tpot_p95_ms: float
    predicted_e2e_p95_ms: float
    chance: float = Field(description="probability that the latency limits are met")
    harm: int = Field(
        description="sequences under way that would take longer per token than the budgets allow because of it"
    )
    cost_usd: float
    in_flight: int
    replica: int | None = Field(description="of the variant's running replicas, the one it would go to, from 1")
    replica_in_flight: float = Field(description="sequences in flight there")
    cached_tokens: int = Field(description="of the prompt, expected in the prefix cache there")
    ruled_out: str | None = Field(description="the first rule it breaks")
    why: str | None = Field(description="the rule in words, or every limit that is not met")


class PlannedRetrieval(_ClosedModel):
    """Sources that the budget allows."""

    top_k: int
    more_chars: int


class RouteDecision(OpenModel):
    """Where a request would go now."""

    budget: Budget
    variant: str | None = Field(description="null: it is answered without a variant, and what is of one is null too")
    reason: str = Field(json_schema_extra={"enum": [*REASONS, "computed"]})
    quality: float | None
    predicted_ttft_ms: float | None
    predicted_tpot_ms: float | None
    predicted_e2e_ms: float | None
    predicted_ttft_p95_ms: float | None
    predicted_tpot_p95_ms: float | None
    predicted_e2e_p95_ms: float | None
    chance: float | None
    wait_ms: float = Field(description="predicted wait in the gateway before the request starts; 0: at once")
    harm: int = Field(
        description="sequences under way that would take longer per token than the budgets allow because of it"
    )
    cost_usd: float
    candidates: list[Candidate]
    retrieval: PlannedRetrieval | None = None


class Model(_ClosedModel):
    """A name that `model` may have: the model, one of its budget profiles, or one of its variants."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    gearbox: dict[str, Any] = Field(
        description="variants and profiles, a profile's budget, or a variant's card in brief"
    )


class ModelList(_ClosedModel):
    """Every name that `model` may have."""

    object: Literal["list"]
    data: list[Model]


class VariantState(OpenModel):
    """A variant: its card and its state now."""

    name: str
    health: Literal["healthy", "scaled_to_zero", "unavailable"]
    replicas: int
    max_replicas: int
    ejected_replicas: int = Field(description="replicas that stalled or cannot be reached, and get no requests")
    in_flight: int
    running: int
    waiting: int
    kv_cache_usage: float
    card: Card


class VariantList(_ClosedModel):
    """The catalog."""

    object: Literal["list"]
    data: list[VariantState]


# ------------------------------------------------------------------------------------------------------------ documents


class IndexedDocument(OpenModel):
    """The document that was indexed."""

    object: Literal["document"]
    source: str
    collection: str
    status: str = Field(description="added, replaced or unchanged")
    chunks: int
    sha256: str
    left_out: list[str] | None = Field(
        default=None, description="what a reader of it may see and is not indexed; null: it was not read again"
    )
    ms: float


class DocumentSummary(OpenModel):
    """An indexed document; without `collection` in the query, a collection."""

    source: str | None = None
    title: str | None = None
    size: int | None = None
    chunks: int | None = None
    sha256: str | None = None
    current: bool | None = Field(default=None, description="false: to be indexed anew, the embedder has changed")
    meta: dict[str, Any] | None = None
    indexed_at: float | None = Field(default=None, description="seconds since the epoch")
    collection: str | None = None
    documents: int | None = None


class DocumentList(_ClosedModel):
    """A page of documents, or of the tenant's collections, in the order of their names."""

    object: Literal["list"]
    data: list[DocumentSummary]
    has_more: bool


class Deleted(_ClosedModel):
    """How many documents were removed."""

    deleted: int


class Passage(_ClosedModel):
    """A passage that was found."""

    n: int
    source: str
    title: str | None
    heading: str | None
    page: int | None
    score: float
    content: str
    quote: str
    meta: dict[str, Any]


class SearchResult(_ClosedModel):
    """Passages, best first; of those about as good, the newest by their document's `date` first."""

    object: Literal["list"]
    support: float = Field(description="how well the best of them supports an answer, 0 to 1")
    grounded: bool = Field(
        description="whether a passage of `data` supports an answer: has at least the mode's own threshold, whatever "
        "`min_score` is"
    )
    data: list[Passage] = Field(description="at most `top_k`, with at least `min_score` as support")
    timings_ms: dict[str, float]
    ms: float


class Calibration(_ClosedModel):
    """The threshold of a collection: if no passage has it as support, no document answers the question."""

    object: Literal["calibration"]
    collection: str
    threshold: float
    rate: float = Field(description="share of answerable questions that may score below it")
    questions: int | None = Field(description="that it was made from; null: the platform's default")
    calibrated_at: float | None = Field(description="seconds since the epoch")


class Embedding(_ClosedModel):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or float32 little-endian in base64")


class EmbeddingUsage(_ClosedModel):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_ClosedModel):
    """Embeddings in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


# --------------------------------------------------------------------------------------------------------------- health


class Health(_ClosedModel):
    """The gateway is alive."""

    status: Literal["ok"]


class Readiness(_ClosedModel):
    """The variants that can answer."""

    status: Literal["ready"]
    variants: list[str]
