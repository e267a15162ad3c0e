"""Validate the fields of chat completions that the gateway answers itself, because no engine validates them.

Types are as lenient as the engine's ("0.5" is a number), unknown fields are ignored, and null means absent.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import SchemaError, SchemaValidator, core_schema

from serve.errors import RequestError
from serve.request.openai_limits import MAX_LOGIT_BIAS, TOKEN_ID, Role

MAX_CHOICES = 128  # OpenAI's limit
MAX_LOGPROBS = 20  # OpenAI's limit, and the engine's default
_IN_EVERY_DIALECT = (
    "unclosed group", "unopened group", "unclosed character class", "repetition operator missing expression",
    "invalid character class range, the start must be <= the end", "incomplete escape sequence, reached end of pattern prematurely",
)  # fmt: skip
_INT64 = 2**63
_GREEDY = 1e-5  # vLLM treats lower temperatures as 0
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class _Function(_Fields):
    name: Annotated[str, Field(min_length=1)]


class _Tool(_Fields):
    class Definition(_Function):
        description: str | None = None
        parameters: dict[str, Any] | None = None
        strict: bool | None = None

    type: Literal["function"] = "function"
    function: Definition


class _NamedTool(_Fields):
    type: Literal["function"] = "function"
    function: _Function


class _ToolCall(_Fields):
    class Called(_Function):
        arguments: str

    id: str
    type: Literal["function"] = "function"
    function: Called


class _Part(_Fields):
    type: Literal[
        "text", "input_text", "output_text", "refusal", "thinking", "image_url", "input_image", "image_embeds", "input_audio",
        "audio_url", "audio_embeds", "video_url", "video_embeds", "prompt_embeds", "tool_reference", "file",
    ]  # fmt: skip
    text: str | None = None


class _Message(_Fields):
    role: Role
    content: str | list[str | _Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _JsonSchema(_Fields):
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class _ResponseFormat(_Fields):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: _JsonSchema | None = None


class _StreamOptions(_Fields):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


_Stop = Annotated[str, Field(min_length=1)]


class ChatFields(_Fields):
    """Fields of a chat completion: OpenAI's, and those of the engine that affect an answer."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    include_stop_str_in_output: bool = False
    stop_token_ids: list[int] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: (
        dict[Annotated[str, Field(pattern=TOKEN_ID)], Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=-1, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1, le=MAX_LOGPROBS)] | None = None
    response_format: _ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    tools: Annotated[list[_Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    user: str | None = None
    request_id: str = ""
    documents: list[dict[str, str]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=_INT64)] | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1, strict=True)] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    bad_words: list[Annotated[str, Field(min_length=1)]] = []
    mm_processor_kwargs: dict[str, Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None = None
    echo: bool = False
    ignore_eos: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @property
    def choices(self) -> int:
        """Number of requested choices."""
        return self.n or 1

    @property
    def stops(self) -> Sequence[str]:
        """Stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """Output token limit of one choice."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def read_fields(body: Mapping[str, object]) -> ChatFields:
    """Validate a chat completion's `body`. Raises `RequestError` 400 for what an engine would reject."""
    try:
        fields = ChatFields.model_validate(body)
    except ValidationError as error:
        raise _refused(error, body) from error
    for param, problem in _problems(fields):
        raise _invalid(problem, param)
    return fields


def _problems(fields: ChatFields) -> Iterator[tuple[str, str]]:
    """Conflicts between fields that are valid by themselves: (field, problem in the engine's words)."""
    for position, message in enumerate(fields.messages):
        if message.content is None and message.role not in ("assistant", "function"):
            yield f"messages[{position}].content", f"a message of role '{message.role}' must have content"
        for n, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, _Part) and part.type in ("text", "input_text", "output_text") and part.text is None:
                yield f"messages[{position}].content[{n}].text", "a part of type 'text' must have a text"
    if fields.choices > 1 and fields.temperature is not None and fields.temperature < _GREEDY:
        yield "n", "'n' must be 1 where 'temperature' is 0: all choices would be the same"
    if fields.truncate_prompt_tokens == 0:
        yield "truncate_prompt_tokens", "nothing of the prompt would be left"
    if fields.stream_options and fields.stream_options.model_fields_set and not fields.stream:
        yield "stream_options", "stream options can only be defined when 'stream' is true"
    if fields.top_logprobs and not fields.logprobs:
        yield "top_logprobs", "when using 'top_logprobs', 'logprobs' must be true"
    if fields.prompt_logprobs and fields.stream:
        yield "prompt_logprobs", "'prompt_logprobs' are not available when 'stream' is true"
    if fields.token_limit is not None and fields.min_tokens > fields.token_limit:
        yield "min_tokens", f"'min_tokens' must be at most the token limit of {fields.token_limit}"
    if (
        (response_format := fields.response_format)
        and response_format.type == "json_schema"
        and response_format.json_schema is None
    ):
        yield "response_format.json_schema", "'json_schema' must be given for this type"
    if (constraints := fields.structured_outputs) is not None:
        constrained = [name for name in _CONSTRAINTS if constraints.get(name) is not None]
        if len(constrained) != 1:
            yield "structured_outputs", f"exactly one of {', '.join(_CONSTRAINTS)} must be given"
        if (pattern := constraints.get("regex")) is not None and (problem := _pattern_problem(pattern)) is not None:
            yield "structured_outputs", f"'regex' is not a regular expression: {problem}"
    if fields.chat_template is not None or "chat_template" in (fields.chat_template_kwargs or {}):
        yield "chat_template", "the engines use the model's own template"
    if fields.tool_choice not in (None, "none") and fields.tools is None:
        yield "tool_choice", "when using 'tool_choice', 'tools' must be set"
    tools = {tool.function.name for tool in fields.tools or ()}
    if isinstance(chosen := fields.tool_choice, _NamedTool) and chosen.function.name not in tools:
        yield "tool_choice", "the function in 'tool_choice' is none of those in 'tools'"


def _pattern_problem(pattern: object) -> str | None:
    """What makes a regular expression invalid in every dialect. Where dialects differ, the engine decides."""
    if not isinstance(pattern, str):
        return "it must be a string"
    try:
        SchemaValidator(
            core_schema.str_schema(pattern=pattern)
        )  # of Rust: no pattern takes long to compile or to match
    except SchemaError as error:
        problem = str(error).rpartition("error: ")[2].partition("\n")[0]
        return problem if problem in _IN_EVERY_DIALECT else None
    return None


def _refused(error: ValidationError, body: Mapping[str, object]) -> RequestError:
    """The error for the most deeply nested invalid field, with all alternatives of its type."""
    problems: dict[tuple[str | int, ...], list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        path = _path(detail["loc"], body) + (detail["loc"][-1:] if detail["type"] == "missing" else ())
        problems.setdefault(path, []).append(detail["msg"][0].lower() + detail["msg"][1:])
    first = next(iter(problems))
    path = max((other for other in problems if other[:1] == first[:1]), key=len)
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    return _invalid(", or ".join(dict.fromkeys(problems[path])), where)


def _path(loc: Sequence[str | int], body: object) -> tuple[str | int, ...]:
    """The part of `loc` that is a path in `body`, without pydantic's names of union members."""
    path: list[str | int] = []
    for step in loc:
        known = step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int)
        if known:
            body = body[step]  # type: ignore[index]  # `step` was checked above
            path.append(step)
    return tuple(path)


def _invalid(problem: str, param: str) -> RequestError:
    return RequestError(400, f"invalid '{param}': {problem}", param=param, code="invalid_request")
