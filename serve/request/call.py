"""Parse chat and completions bodies as far as the gateway needs them, with the variant or profile in `model`.

Everything else in the body is validated once, by the engine.
"""

import hashlib
import sys
from dataclasses import dataclass
from typing import Any, Literal, cast

from serve.errors import ErrorCode, RequestError
from serve.request.json_body import dump_json, read_json
from serve.request.openai_limits import check_openai_limits
from serve.routing.replica_state import BLOCK_CHARS

Endpoint = Literal["chat", "completions"]
PATHS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}

DEFAULT_OUTPUT_TOKENS = 256  # expected output length when the request sets no limit
_COMPLETION_TOKENS = 16  # default `max_tokens` of completions in OpenAI's API and vLLM
_MESSAGE_OVERHEAD_TOKENS = 4  # role and separators of one chat message in common templates


@dataclass(slots=True, frozen=True)
class ModelRef:
    """`model`, `model@profile` or `model:variant`; `+collection` after it names documents to answer from."""

    model: str
    profile: str | None = None
    variant: str | None = None
    collection: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Split a `model` field; the model's own name may not contain '@', ':' or '+'."""
        text, plus, collection = text.partition("+")
        documents = collection if plus else None
        if "@" in text:
            model, _, profile = text.partition("@")
            return cls(model, profile=profile, collection=documents)
        model, colon, variant = text.partition(":")
        return cls(model, variant=variant if colon else None, collection=documents)


@dataclass(slots=True)
class Call:
    """A generation request, parsed as far as routing needs it."""

    endpoint: Endpoint
    body: dict[str, object]  # the body for the engine, without `budget` and `retrieval`
    ref: ModelRef
    budget: object  # the body's `budget` field, not yet validated
    retrieval: object  # the body's `retrieval` field, not yet validated
    stream: bool
    wants_usage: bool
    model: str  # as the client requested it, and as responses name it
    prompts: int  # 1, or the length of a list of prompts
    choices: int  # answers that the engine generates for each prompt
    min_output_tokens: int  # minimum length of each answer, by the request
    prompt_chars: int  # of all prompts
    prompt_tokens: int  # exactly known tokens of all prompts: token IDs in the request, template overhead
    longest: float  # the longest prompt's share of all prompts
    max_output_tokens: int
    limits_output: bool  # whether `max_output_tokens` is a limit, not only an expectation
    blocks: tuple[int, ...]  # hashes of the prompt's complete blocks, each including all blocks before it

    @property
    def echoes_only(self) -> bool:
        """Whether the response is the prompt alone. The engine still generates a token, and does not return it."""
        return self.limits_output and self.max_output_tokens == 0

    @property
    def sequences(self) -> int:
        """Number of sequences that the engine generates concurrently."""
        return self.prompts * self.choices

    @property
    def messages(self) -> list[Any]:
        """The messages of a chat: a non-empty list of objects."""
        return cast(list[Any], self.body["messages"])

    def constrain_tool_calls(self) -> None:
        """Set `strict` on functions that do not set it, so that the engine constrains tool calls to their schemas."""
        tools = self.body.get("tools")
        if not isinstance(tools, list) or self.body.get("tool_choice") == "none":
            return
        for tool in tools:
            function = tool.get("function") if isinstance(tool, dict) else None
            if isinstance(function, dict) and function.get("strict") is None:
                function["strict"] = True

    def payload(self, served_name: str, priority: int | None = None, *, token_ids: bool = False) -> bytes:
        """The body for the engine, with the logical model's name and with usage at the end of every stream.

        Args:
            priority: 64-bit integer, lower first; None for engines that schedule in order of arrival. It replaces the
                client's own, which could overtake every other request.
            token_ids: request the ids of all tokens.
        """
        self.body["model"] = served_name
        self.body.pop("priority", None)
        if priority is not None:
            self.body["priority"] = priority
        if self.stream:
            options = self.body.get("stream_options")
            options = dict(options) if isinstance(options, dict) else {}
            if not self.wants_usage:  # the client did not request usage, nor usage in each chunk
                options.pop("continuous_usage_stats", None)
            self.body["stream_options"] = {**options, "include_usage": True}
        return dump_json({**self.body, "return_token_ids": True} if token_ids else self.body)

    def replace_messages(self, messages: list[object]) -> None:
        """Replace the messages of a chat and recompute the prompt's size and blocks."""
        self.body["messages"] = messages
        self.prompt_chars, self.prompt_tokens = _chat_size(self.body)
        self.blocks = _blocks(_conversation(self.body), self.body.get("cache_salt"))


def parse_call(raw: bytes, endpoint: Endpoint, tenant: str) -> Call:
    """Parse a chat-completions or completions body.

    The engine's prefix cache is salted with `tenant`: otherwise TTFT would reveal the prompts of other tenants.

    Raises:
        RequestError: 400 when it is not JSON, not an object, or a field the gateway uses has the wrong type; and for values that
            OpenAI's API refuses and the engine does not.
    """
    body = read_json(raw)
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_body")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(400, "'model' is required and must be a string", param="model", code="missing_model")
    if (stream := body.get("stream")) is None:
        stream = False
    if not isinstance(stream, bool):
        raise RequestError(400, "'stream' must be true or false", param="stream", code="invalid_type")
    if endpoint == "completions" and "max_tokens" in body and body["max_tokens"] is None:
        del body["max_tokens"]  # versions of the engine differ in what null means
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(400, "'stream_options' must be an object", param="stream_options", code="invalid_type")
    if options and not isinstance(options.get("include_usage"), bool | None):
        message, param = "'stream_options.include_usage' must be true or false", "stream_options.include_usage"
        raise RequestError(400, message, param=param, code="invalid_type")
    if endpoint == "chat":
        prompts, longest, (chars, tokens) = 1, 1.0, _chat_size(body)
    else:
        prompts, longest, chars, tokens = _prompt_size(body)
    check_openai_limits(body)
    limit = _max_output(body, endpoint)
    text = _conversation(body) if endpoint == "chat" else body["prompt"]
    if (salt := body.get("cache_salt")) is not None and not isinstance(salt, str):
        raise RequestError(400, "'cache_salt' must be a string", param="cache_salt", code="invalid_type")
    # hashed, because engines restrict a salt's length and characters
    body["cache_salt"] = salt = f"{tenant} {hashlib.sha256(salt.encode()).hexdigest()[:32]}" if salt else tenant
    return Call(
        endpoint=endpoint,
        ref=ModelRef.parse(model),
        model=model,
        prompts=prompts,
        choices=_choices(body, endpoint),
        min_output_tokens=_min_output(body, limit),
        budget=body.pop("budget", None),
        retrieval=body.pop("retrieval", None),
        body=body,
        stream=stream,
        wants_usage=bool(options and options.get("include_usage")),
        prompt_chars=chars,
        prompt_tokens=tokens,
        longest=longest,
        max_output_tokens=DEFAULT_OUTPUT_TOKENS if limit is None else limit,
        limits_output=limit is not None,
        blocks=_blocks(text, salt) if isinstance(text, str) else (),
    )


def _max_output(body: dict[str, object], endpoint: Endpoint) -> int | None:
    """The output token limit of one answer; 0 for a completion that only echoes its prompt."""
    minimum = 0 if endpoint == "completions" and body.get("echo") is True else 1
    names = ("max_completion_tokens", "max_tokens") if endpoint == "chat" else ("max_tokens",)
    for value in [_integer(body, name, minimum) for name in names]:
        if value is not None:
            return value
    return _COMPLETION_TOKENS if endpoint == "completions" and "max_tokens" not in body else None


def _choices(body: dict[str, object], endpoint: Endpoint) -> int:
    """Number of answers to one prompt: `n`. The engine does not generate more of them for `best_of`."""
    choices = _integer(body, "n", 1) or 1
    best_of = None if endpoint == "chat" else _integer(body, "best_of", 1)
    if best_of is not None and best_of < choices:
        message = f"'best_of' must be at least 'n', which is {choices}"
        raise RequestError(400, message, param="best_of", code="invalid_value")
    if best_of is not None and best_of > choices:
        message = (
            "'best_of' greater than 'n' is not supported: the engine returns the first 'n' answers that it writes; "
            f"ask for {best_of} answers with 'n' and choose among them"
        )
        raise RequestError(400, message, param="best_of", code="unsupported_value")
    return choices


def _min_output(body: dict[str, object], limit: int | None) -> int:
    """Minimum length of each answer: `min_tokens`, or with `ignore_eos` the output limit.

    Without a limit, `ignore_eos` fills the context. Values of the wrong type are left for the engine to reject.
    """
    if body.get("ignore_eos") is True:
        return sys.maxsize if limit is None else limit
    min_tokens = body.get("min_tokens")
    return int(min_tokens) if isinstance(min_tokens, int | float) and 0 <= min_tokens < 1 << 63 else 0


def _integer(body: dict[str, object], name: str, minimum: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 8.0 and 8 are the same number in JSON
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(400, f"'{name}' must be an integer", param=name, code="invalid_type")
    if value < minimum:
        raise RequestError(400, f"'{name}' must be at least {minimum}", param=name, code="invalid_value")
    if value >= 1 << 63:
        raise RequestError(400, f"'{name}' is too large", param=name, code="invalid_value")
    return value


def _chat_size(body: dict[str, object]) -> tuple[int, int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "'messages' must be a non-empty list", param="messages", code="missing_messages")
    chars = len(dump_json(body["tools"])) if body.get("tools") else 0
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RequestError(400, f"messages[{i}] must be an object", param=f"messages[{i}]", code="invalid_type")
        content = message.get("content")
        if isinstance(content, str):
            chars += len(content)
        elif isinstance(content, list):
            chars += sum(
                len(part["text"]) for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
    return chars, len(messages) * _MESSAGE_OVERHEAD_TOKENS


def _prompt_size(body: dict[str, object]) -> tuple[int, float, int, int]:
    """Number of prompts, the longest prompt's share of their size, and the characters and token IDs of all prompts.

    `prompt` is a string, token ids, or a list of either.
    """
    prompt = body.get("prompt")
    # An empty string inside a list is allowed: it may get a beginning-of-sequence token.
    if prompt == "" or (isinstance(prompt, list) and [] in prompt):
        raise RequestError(400, "'prompt' must not be empty", param="prompt", code="invalid_value")
    if isinstance(prompt, str):
        return 1, 1.0, len(prompt), 0
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            chars = [len(item) for item in prompt]
            return len(prompt), max(chars) / (sum(chars) or 1), sum(chars), 0
        if _are_ids(prompt):
            return 1, 1.0, 0, len(prompt)
        if all(isinstance(item, list) and _are_ids(item) for item in prompt):
            counts = [len(item) for item in prompt]
            return len(prompt), max(counts) / (sum(counts) or 1), 0, sum(counts)
    missing = prompt is None or prompt == []
    code: ErrorCode = "missing_prompt" if missing else "invalid_type"
    message = "'prompt' must be a string, token ids, or a list of either"
    raise RequestError(400, message, param="prompt", code=code)


def _are_ids(items: list[object]) -> bool:
    kinds = set(map(type, items))
    if kinds <= {int}:
        return True
    return kinds <= {int, float} and all(float(item).is_integer() for item in items)  # type: ignore[arg-type]


def _conversation(body: dict[str, object]) -> str:
    """All texts of a chat in the order of chat templates, so that continued chats share a prefix."""
    messages = body["messages"]
    parts = [dump_json(body["tools"]).decode()] if body.get("tools") else []
    for message in messages:  # type: ignore[attr-defined]  # checked by _chat_size
        content = message.get("content")
        parts.append(str(message.get("role")))
        parts.append(content if isinstance(content, str) else dump_json(content).decode())
    return "\n".join(parts)


def _blocks(text: str, salt: object) -> tuple[int, ...]:
    """Equal in all processes: gateways exchange them."""
    hashes, previous = [], dump_json(salt)
    for at in range(BLOCK_CHARS, len(text) + 1, BLOCK_CHARS):
        block = text[at - BLOCK_CHARS : at].encode(errors="surrogatepass")
        previous = hashlib.blake2b(previous + block, digest_size=8).digest()
        hashes.append(int.from_bytes(previous))
    return tuple(hashes)
