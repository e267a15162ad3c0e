"""Request models of the OpenAPI description: bodies of chat completions, completions and routing.

The request path does not validate bodies with these models: the gateway reads the few fields it uses (`serve.request.call`), the
engine validates the others, and a test compares both with the models here. Bodies that the gateway validates with pydantic
(documents, search, embeddings, budgets, grounding) are described by the models that validate them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from serve.budget import Budget
from serve.request.chat_fields import MAX_LOGPROBS
from serve.request.grounding import GroundingOptions
from serve.request.json_types import INTEGRAL
from serve.request.openai_limits import MAX_LOGIT_BIAS, TOKEN_ID, Role

Count = Annotated[int, Field(strict=True, ge=1, le=(1 << 63) - 1), INTEGRAL]
Choices = Annotated[int, Field(strict=True, ge=1, le=(1 << 63) - 1), INTEGRAL]
Integer = Annotated[int, Field(strict=True), INTEGRAL]
NotNegative = Annotated[int, Field(strict=True, ge=0), INTEGRAL]
TokenIds = Annotated[list[NotNegative], Field(min_length=1)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=TOKEN_ID)], Annotated[Float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
    Field(json_schema_extra={"additionalProperties": False}),
]
Logprobs = Annotated[int, Field(strict=True, ge=0, le=MAX_LOGPROBS), INTEGRAL]
Seed = Annotated[int, Field(strict=True, ge=-(1 << 63), le=(1 << 63) - 1), INTEGRAL]
StopText = Annotated[StrictStr, Field(min_length=1)]
Stops = Annotated[list[StopText], Field(max_length=4)]


class OpenModel(BaseModel):
    """A JSON object that the engine defines: fields that are not named here are passed on unchanged."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(OpenModel):
    """Options of a streamed answer."""

    include_usage: StrictBool | None = Field(
        default=None, description="send a last chunk with the request's token counts and no choices"
    )


class FunctionDefinition(OpenModel):
    """A function that the model may call."""

    name: Annotated[StrictStr, Field(min_length=1)]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments")
    strict: StrictBool | None = None


class Tool(OpenModel):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(OpenModel):
    """A function's name."""

    name: StrictStr


class NamedToolChoice(OpenModel):
    """The one function that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchemaFormat(OpenModel):
    """A schema that the answer must follow."""

    name: StrictStr
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(OpenModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(default=None, description="required with `json_schema`")


class TextPart(OpenModel):
    """A part of a message. The served models read text."""

    type: Literal["text"]
    text: StrictStr


class ToolCallFunction(OpenModel):
    """The function that was called, and its arguments as JSON text."""

    name: StrictStr
    arguments: StrictStr


class ToolCall(OpenModel):
    """A call that the model made."""

    id: StrictStr
    type: Literal["function"] = "function"
    function: ToolCallFunction


class Message(OpenModel):
    """One message of a conversation."""

    role: Role
    content: StrictStr | list[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, description="of an assistant's message")
    tool_call_id: StrictStr | None = Field(default=None, description="of a tool's message: the call it answers")


class Retrieval(GroundingOptions):
    """Grounding of one chat request; what is left out is the deployment's default."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))


class _Routed(OpenModel):
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


class RouteMessage(OpenModel):
    """One message of a conversation, as far as the router needs it."""

    role: Role


class RouteChatRequest(_Routed):
    """A chat-completions body as far as the router needs it."""

    messages: Annotated[list[RouteMessage], Field(min_length=1)]
    retrieval: StrictBool | Retrieval | None = Field(
        default=None, description="answer from documents: true for the deployment's defaults, or what differs from them"
    )
    max_completion_tokens: Count | None = Field(
        default=None, description="longest answer, tokens; wins over max_tokens"
    )


class RouteCompletionRequest(_Routed):
    """A completions body as far as the router needs it."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"max_tokens": {"anyOf": [{"minimum": 1}, {"type": "null"}]}}},
                {"required": ["echo"], "properties": {"echo": {"const": True}}},
            ]
        }
    )

    max_tokens: Annotated[int, Field(strict=True, ge=0, le=(1 << 63) - 1), INTEGRAL] | None = Field(
        default=None, description="longest answer, tokens; 0 only with `echo`: the prompt alone"
    )

    prompt: (
        Annotated[StrictStr, Field(min_length=1)]
        | Annotated[list[StrictStr], Field(min_length=1)]
        | Annotated[list[Integer], Field(min_length=1)]
        | Annotated[list[Annotated[list[Integer], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="a text, token ids, or a list of either")
    retrieval: Literal[False] | None = Field(default=None, description="only chat completions can be grounded")


class _Sampling(OpenModel):
    """The fields that chat and completions bodies have in common and the engine reads."""

    n: Choices | None = Field(default=None, description="answers to one prompt; cost and load are those of all of them")
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = Field(default=None, description="bias by token id")
    seed: Seed | None = None
    stop: StopText | Stops | None = Field(default=None, description="texts that end the answer")
    user: StrictStr | None = None


class ChatCompletionRequest(_Sampling, RouteChatRequest):
    """OpenAI's chat-completions body, with `budget` and `retrieval`. Fields not named here go to the engine (vLLM)."""

    messages: Annotated[list[Message], Field(min_length=1)]  # type: ignore[assignment]  # narrower than the router's
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Logprobs | None = Field(default=None, description="needs `logprobs`")


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
    logprobs: Logprobs | None = None
