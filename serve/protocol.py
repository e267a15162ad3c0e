"""The OpenAI protocol as far as the gateway needs it: reading a request body and naming a variant or budget in `model`.

Everything else in the body is validated once, by the engine.
"""

from dataclasses import dataclass
from typing import Literal

import orjson

from serve.errors import RequestError
from serve.http import read_json

Endpoint = Literal["chat", "completions"]
PATHS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}

DEFAULT_OUTPUT_TOKENS = 256  # expected answer length when the request sets no limit
MAX_SALT_CHARS = 960  # engines take 1,024, the tenant's name included
BLOCK_CHARS = 512  # of the prompt's text, about one block of the engine's cache
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
    body: dict[str, object]  # what is sent on; `budget` and `retrieval` taken out
    ref: ModelRef
    budget: object  # the body's `budget` field, not yet validated
    retrieval: object  # the body's `retrieval` field, not yet validated
    stream: bool
    wants_usage: bool
    prompt_chars: int
    prompt_tokens: int  # exactly known part: token ids given by the client, template overhead
    max_output_tokens: int
    blocks: tuple[int, ...]  # hashes of the whole blocks of the prompt's text, each with all that comes before it

    def payload(self, served_name: str) -> bytes:
        """The body for the engine: the logical model's name, and usage asked for on every stream."""
        self.body["model"] = served_name
        if self.stream:
            options = self.body.get("stream_options")
            self.body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return orjson.dumps(self.body)

    def reword(self, messages: list[object]) -> None:
        """Ask a chat's question in other words: what the router and the engine get is the new prompt."""
        self.body["messages"] = messages
        self.prompt_chars, self.prompt_tokens = _chat_size(self.body)
        self.blocks = _blocks(_conversation(self.body), self.body.get("cache_salt"))


def parse_call(raw: bytes, endpoint: Endpoint, tenant: str) -> Call:
    """Read a chat-completions or completions body.

    The engine's prefix cache is salted with `tenant`: how soon an answer begins must not tell what others have asked.

    Raises:
        RequestError: 400 when it is not JSON, not an object, or a field the gateway uses has the wrong type.
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
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(400, "'stream_options' must be an object", param="stream_options", code="invalid_type")
    if options and not isinstance(options.get("include_usage"), bool | None):
        message, param = "'stream_options.include_usage' must be true or false", "stream_options.include_usage"
        raise RequestError(400, message, param=param, code="invalid_type")
    chars, tokens = _chat_size(body) if endpoint == "chat" else _prompt_size(body)
    text = _conversation(body) if endpoint == "chat" else body["prompt"]
    salt = body.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and len(salt) <= MAX_SALT_CHARS):
        message = f"'cache_salt' must be a string of at most {MAX_SALT_CHARS} characters"
        raise RequestError(400, message, param="cache_salt", code="invalid_type")
    body["cache_salt"] = salt = f"{tenant} {salt}" if salt else tenant
    return Call(
        endpoint=endpoint,
        ref=ModelRef.parse(model),
        budget=body.pop("budget", None),
        retrieval=body.pop("retrieval", None),
        body=body,
        stream=stream,
        wants_usage=bool(options and options.get("include_usage")),
        prompt_chars=chars,
        prompt_tokens=tokens,
        max_output_tokens=_max_output(body),
        blocks=_blocks(text, salt) if isinstance(text, str) else (),
    )


def _max_output(body: dict[str, object]) -> int:
    most = None
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # the same number in JSON
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(400, f"'{name}' must be a positive integer", param=name, code="invalid_type")
        most = most or value
    return most or DEFAULT_OUTPUT_TOKENS


def _chat_size(body: dict[str, object]) -> tuple[int, int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "'messages' must be a non-empty list", param="messages", code="missing_messages")
    chars = len(orjson.dumps(body["tools"])) if body.get("tools") else 0
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


def _prompt_size(body: dict[str, object]) -> tuple[int, int]:
    """Size of `prompt`: a string, token ids, or a list of either (the longest counts)."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return len(prompt), 0
    if isinstance(prompt, list) and prompt:
        kinds = set(map(type, prompt))
        if kinds == {str}:
            return max(len(item) for item in prompt), 0
        if kinds == {int} or (kinds <= {int, float} and all(float(item).is_integer() for item in prompt)):
            return 0, len(prompt)  # 8.0 is the same number in JSON, true is none
        if kinds == {list}:
            return 0, max(len(item) for item in prompt)
    raise RequestError(
        400, "'prompt' must be a string, a list of strings or token ids", param="prompt", code="missing_prompt"
    )


def _conversation(body: dict[str, object]) -> str:
    """All texts of a chat in the order in which templates have them: a longer chat begins as the shorter one did."""
    messages = body["messages"]
    parts = [orjson.dumps(body["tools"]).decode()] if body.get("tools") else []
    for message in messages:  # type: ignore[attr-defined]  # seen by _chat_size
        content = message.get("content")
        parts.append(str(message.get("role")))
        parts.append(content if isinstance(content, str) else orjson.dumps(content).decode())
    return "\n".join(parts)


def _blocks(text: str, salt: object) -> tuple[int, ...]:
    found, before = [], hash(salt)
    for at in range(BLOCK_CHARS, len(text) + 1, BLOCK_CHARS):
        before = hash((before, text[at - BLOCK_CHARS : at]))
        found.append(before)
    return tuple(found)
