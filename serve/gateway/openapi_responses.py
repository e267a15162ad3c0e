"""Request and response models of the OpenAPI description.

The request path does not validate chat and completions bodies with these models: the gateway reads the few fields it uses
(`serve.request.call`), the engine validates the others, and a test compares both with the models here. Bodies that the gateway
validates with pydantic (documents, search, embeddings, budgets, grounding) are described by the models that validate them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from serve.budget import Budget
from serve.card import Card
from serve.request.grounding import GroundingOptions, Outcome
from serve.request.json_types import INTEGRAL
from serve.routing.router import REASONS

Count = Annotated[int, Field(strict=True, ge=1, le=(1 << 63) - 1), INTEGRAL]
Choices = Annotated[int, Field(strict=True, ge=1, le=(1 << 63) - 1), INTEGRAL]
Integer = Annotated[int, Field(strict=True), INTEGRAL]
NotNegative = Annotated[int, Field(strict=True, ge=0), INTEGRAL]
TokenIds = Annotated[list[NotNegative], Field(min_length=1)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]+$")], Annotated[Float, Field(ge=-100, le=100)]],
    Field(json_schema_extra={"additionalProperties": False}),
]
_EXACT = 2**53  # up to this value, every JSON parser represents integers exactly


class _Open(BaseModel):
    """A part that the engine owns: fields that are not named here are passed on as they are."""

    model_config = ConfigDict(extra="allow")


class _Closed(BaseModel):
    """A part that the gateway owns."""

    model_config = ConfigDict(extra="forbid")


# ------------------------------------------------------------------------------------------------------ chat, completions


class StreamOptions(_Open):
    """Options of a streamed answer."""

    include_usage: StrictBool | None = Field(
        default=None, description="send a last chunk with the request's token counts and no choices"
    )


class FunctionDefinition(_Open):
    """A function that the model may call."""

    name: Annotated[StrictStr, Field(min_length=1)]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments")
    strict: StrictBool | None = None


class Tool(_Open):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(_Open):
    """A function's name."""

    name: StrictStr


class NamedToolChoice(_Open):
    """The one function that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchemaFormat(_Open):
    """A schema that the answer must follow."""

    name: StrictStr
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(_Open):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(default=None, description="required with `json_schema`")


class TextPart(_Open):
    """A part of a message. The served models read text."""

    type: Literal["text"]
    text: StrictStr


class ToolCallFunction(_Open):
    """The function that was called, and its arguments as JSON text."""

    name: StrictStr
    arguments: StrictStr


class ToolCall(_Open):
    """A call that the model made."""

    id: StrictStr
    type: Literal["function"] = "function"
    function: ToolCallFunction


class Message(_Open):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, description="of an assistant's message")
    tool_call_id: StrictStr | None = Field(default=None, description="of a tool's message: the call it answers")


class Retrieval(GroundingOptions):
    """Grounding of one chat request; what is left out is the deployment's default."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))


class _Routed(_Open):
    """The fields that the gateway itself reads, of chat and completions bodies."""

    model: Annotated[StrictStr, Field(min_length=1)] = Field(
        description="`MODEL`: routed by the key's default budget; `MODEL@PROFILE`: by a named one; `MODEL:VARIANT`: pinned"
    )
    stream: StrictBool | None = Field(default=None, description="answer with server-sent events")
    stream_options: StreamOptions | None = None
    budget: Budget | None = Field(default=None, description="limits of this request; headers win over it")
    max_tokens: Count | None = Field(default=None, description="longest answer, tokens")
    cache_salt: StrictStr | None = Field(
        default=None, description="separates prefix-cache entries within a tenant; tenants never share any"
    )


class RouteChatRequest(_Routed):
    """A chat-completions body as far as the router needs it."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    retrieval: StrictBool | Retrieval | None = Field(
        default=None, description="answer from documents: true for the deployment's defaults, or what differs from them"
    )
    max_completion_tokens: Count | None = Field(
        default=None, description="longest answer, tokens; wins over max_tokens"
    )


class RouteCompletionRequest(_Routed):
    """A completions body as far as the router needs it."""

    prompt: (
        Annotated[StrictStr, Field(min_length=1)]
        | Annotated[list[StrictStr], Field(min_length=1)]
        | Annotated[list[Integer], Field(min_length=1)]
        | Annotated[list[Annotated[list[Integer], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="a text, token ids, or a list of either")
    retrieval: Literal[False] | None = Field(default=None, description="only chat completions can be grounded")


class _Sampling(_Open):
    """The fields that chat and completions bodies have in common and the engine reads."""

    n: Choices | None = Field(default=None, description="answers to one prompt; cost and load are those of all of them")
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = Field(default=None, description="bias by token id")
    seed: Annotated[int, Field(strict=True, gt=-_EXACT, lt=_EXACT), INTEGRAL] | None = None
    stop: StrictStr | list[StrictStr] | None = Field(default=None, description="texts that end the answer")
    user: StrictStr | None = None


class ChatCompletionRequest(_Sampling, RouteChatRequest):
    """OpenAI's chat-completions body, with `budget` and `retrieval`. Fields not named here go to the engine (vLLM)."""

    messages: Annotated[list[Message], Field(min_length=1)]  # type: ignore[assignment]  # narrower than the router's
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: NotNegative | None = Field(default=None, description="needs `logprobs`")


class CompletionRequest(_Sampling, RouteCompletionRequest):
    """OpenAI's completions body, with `budget`. Fields not named here go to the engine (vLLM)."""

    prompt: (
        Annotated[StrictStr, Field(min_length=1)]
        | Annotated[list[StrictStr], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
    ) = Field(description="a text, token ids, or a list of either: each is answered, in order")
    best_of: Choices | None = Field(
        default=None, description="only the value of `n`: the engine writes no more answers than it returns"
    )
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    logprobs: NotNegative | None = None


class Predicted(_Closed):
    """Predicted medians and 95% bounds of the chosen variant, ms."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float
    ttft_p95_ms: float
    tpot_p95_ms: float
    e2e_p95_ms: float


class Citation(_Closed):
    """A source that sentences of the answer rest on."""

    n: int = Field(description="its number in the prompt")
    source: str
    title: str | None
    heading: str | None
    page: int | None
    score: float
    quote: str


class Sentence(_Closed):
    """A sentence of the answer, held against the sources."""

    choice: int = Field(description="index of the choice that it is of")
    start: int = Field(description="first character")
    end: int
    supported: bool | None = Field(description="null: it claims nothing that could be checked")
    score: float | None
    source: int | None = Field(description="number of the source that supports it")


class ToolUse(_Closed):
    """A tool that was used for the answer."""

    name: str
    input: Any
    output: str


class RetrievalReport(_Closed):
    """What was done to ground the answer."""

    outcome: Outcome
    why: str | None
    collection: str | None
    mode: str
    support: float | None
    passages: int
    ms: float
    check_ms: float | None
    timings_ms: dict[str, float] = Field(description="by the pipeline's components")


class Gearbox(_Open):
    """What was chosen, and what the request really took and cost."""

    variant: str | None = Field(description="null: answered without a variant")
    reason: str = Field(
        description=f"why that variant: {', '.join(REASONS)}; without one: computed, abstained, agent",
    )
    quality: float | None
    missed: str | None = Field(description="the limits that were expected not to be kept")
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float
    cost_usd: float
    attempts: int
    predicted: Predicted | dict[str, float] = Field(description="empty without a variant")
    grounded: bool | None = Field(default=None, description="whether sources support every claim; null: not checked")
    citations: list[Citation] = []
    sentences: list[Sentence] | None = None
    quoted: int | None = None
    tools: list[ToolUse] = []
    retrieval: RetrievalReport | None = None


class Usage(_Open):
    """Tokens of the request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(_Open):
    """The message that was generated."""

    role: str
    content: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Open):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(_Open):
    """OpenAI's chat completion, with what Gearbox did."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    gearbox: Gearbox


class TextChoice(_Open):
    """One answer."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class TextCompletion(_Open):
    """OpenAI's completion, with what Gearbox did."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    gearbox: Gearbox


class Delta(_Open):
    """What a chunk adds to an answer."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="parts of calls, by index")


class ChunkChoice(_Open):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(_Open):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="empty in the chunk with the usage")
    usage: Usage | None = None
    gearbox: Gearbox | None = Field(default=None, description="on the last chunk")


class TextCompletionChunk(_Open):
    """One event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice] = Field(description="empty in the chunk with the usage")
    usage: Usage | None = None
    gearbox: Gearbox | None = Field(default=None, description="on the last chunk")


class ErrorDetail(_Closed):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="field, header or parameter at fault")
    code: str | None = Field(description="the reason, for programs")


class Error(_Closed):
    """Every error, in OpenAI's shape."""

    error: ErrorDetail


# ---------------------------------------------------------------------------------------------------- routing, catalog


class Candidate(_Closed):
    """One variant as the router saw it."""

    variant: str
    quality: float
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    predicted_e2e_ms: float
    predicted_ttft_p95_ms: float
    predicted_tpot_p95_ms: float
    predicted_e2e_p95_ms: float
    chance: float = Field(description="probability that the latency limits are kept")
    cost_usd: float
    in_flight: int
    cached_tokens: int = Field(description="of the prompt, expected in the variant's prefix cache")
    ruled_out: str | None = Field(description="the first rule it breaks")
    why: str | None = Field(description="the rule in words, or all limits that are not kept")


class PlannedRetrieval(_Closed):
    """Sources that the budget carries."""

    top_k: int
    more_chars: int


class RouteDecision(_Open):
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
    cost_usd: float
    candidates: list[Candidate]
    retrieval: PlannedRetrieval | None = None


class Model(_Closed):
    """A name that `model` may have: the model, one of its budget profiles, or one of its variants."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    gearbox: dict[str, Any] = Field(
        description="variants and profiles, a profile's budget, or a variant's card in brief"
    )


class ModelList(_Closed):
    """Every name that `model` may have."""

    object: Literal["list"]
    data: list[Model]


class VariantState(_Open):
    """A variant: its card and its state now."""

    name: str
    health: Literal["healthy", "scaled_to_zero", "unavailable"]
    replicas: int
    max_replicas: int
    in_flight: int
    running: int
    waiting: int
    kv_cache_usage: float
    card: Card


class VariantList(_Closed):
    """The catalog."""

    object: Literal["list"]
    data: list[VariantState]


# ------------------------------------------------------------------------------------------------------------ documents


class IndexedDocument(_Open):
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


class DocumentSummary(_Open):
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


class DocumentList(_Closed):
    """A page of documents in the order of their names, or the tenant's collections."""

    object: Literal["list"]
    data: list[DocumentSummary]
    has_more: bool | None = None


class Deleted(_Closed):
    """How many documents were removed."""

    deleted: int


class Passage(_Closed):
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


class SearchResult(_Closed):
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


class Embedding(_Closed):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or float32 little-endian in base64")


class EmbeddingUsage(_Closed):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_Closed):
    """Embeddings in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


# --------------------------------------------------------------------------------------------------------------- health


class Health(_Closed):
    """The gateway is alive."""

    status: Literal["ok"]


class Readiness(_Closed):
    """The variants that can answer."""

    status: Literal["ready"]
    variants: list[str]
