"""Completions produced by the gateway without a variant, with choices, stop sequences, token limit and format applied.

The gateway has no tokenizer. `most_tokens` is an upper bound on the tokens of a text in any language, so text cut by it
stays within the limit.
"""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.request.call import Call
from serve.request.chat_fields import ChatFields
from serve.request.engine_report import Choice

_PIECE = re.compile(r" ?(?:[a-z]{1,2}|[A-Z])|.", re.DOTALL)
#: Fields about tokens, which only a model can answer.
_OF_TOKENS = (
    "logprobs", "prompt_logprobs", "logprob_token_ids", "return_token_ids", "return_tokens_as_token_ids", "min_tokens",
    "ignore_eos", "stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias",
)  # fmt: skip
#: Fields that constrain the output, the engine's deprecated ones too: clients that send them do not expect free text.
_CONSTRAINING = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


@dataclass(slots=True, frozen=True)
class SyntheticCompletion:
    """A completion produced by the gateway without a variant; all its `choices` are the same."""

    text: str
    refusal: bool = False  # the text is returned as OpenAI's `refusal`, because the requested format is not plain text
    finish_reason: str = "stop"
    stop_reason: str | None = None  # the stop sequence that ended the text
    choices: int = 1
    usage: Mapping[str, int] = field(default_factory=dict)  # tokens used by an agent's steps
    cost_usd: float = 0.0  # cost of these tokens
    attempts: int = 0  # attempts at variants

    @classmethod
    def within(cls, fields: ChatFields, text: str, *, refusal: bool = False) -> "SyntheticCompletion":
        """A completion with `text`, cut at the token limit and the stop sequences of `fields`."""
        shown = text if fields.token_limit is None else _first_tokens(text, fields.token_limit)
        if (stopped := _stopped(shown, fields)) is not None:
            return cls(stopped[0], refusal, stop_reason=stopped[1], choices=fields.choices)
        return cls(shown, refusal, "stop" if shown == text else "length", choices=fields.choices)


def calls_function(body: Mapping[str, object]) -> bool:
    """Whether the request requires a call of one of the client's functions."""
    choice = body.get("tool_choice")
    must = choice == "required" or isinstance(choice, dict)
    return bool(body.get("tools") and must) or isinstance(body.get("function_call"), dict)


def takes_text(body: Mapping[str, object]) -> bool:
    """Whether the request allows free text: no JSON, other constraint or audio is requested."""
    response_format, modalities = body.get("response_format"), body.get("modalities")
    free = not isinstance(response_format, dict) or response_format.get("type") in (None, "text")
    spoken = bool(body.get("audio")) or (
        isinstance(modalities, list) and any(modality != "text" for modality in modalities)
    )
    return free and not spoken and not any(body.get(name) for name in _CONSTRAINING)


def model_only(body: Mapping[str, object]) -> str | None:
    """The requested feature that needs a model; None if the gateway can answer with its own text."""
    if calls_function(body):
        return "a call of a function"
    if not takes_text(body):
        return "an answer in a given form"
    return next((f"'{name}'" for name in _OF_TOKENS if body.get(name)), None)


def most_tokens(text: str) -> int:
    """Upper bound on the tokens of `text`: two lower-case letters count as one, other characters as one or one per byte."""
    return sum(map(_tokens, _PIECE.findall(text)))


def _tokens(piece: str) -> int:
    return 1 if piece.isascii() else len(piece.encode())


def _first_tokens(text: str, limit: int) -> str:
    """The longest prefix of `text` whose upper bound is at most `limit` tokens."""
    for piece in _PIECE.finditer(text):
        limit -= _tokens(piece[0])
        if limit < 0:
            return text[: piece.start()]
    return text


def may_grow(body: Mapping[str, Any], choice: Choice, tokens: int, more: str) -> bool:
    """Whether `more` may be appended to a choice of `tokens` tokens: it ended by itself and stays within its limits."""
    if choice.finish_reason != "stop" or isinstance(choice.stop_reason, str):
        return False
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    if any(stop in choice.text + more for stop in stops):
        return False
    limit = body.get("max_tokens") if body.get("max_completion_tokens") is None else body["max_completion_tokens"]
    return limit is None or tokens + most_tokens(more) <= limit


def _stopped(text: str, fields: ChatFields) -> tuple[str, str] | None:
    """`text` up to the stop sequence that completes first, and that stop sequence."""
    ends = [(at + len(stop), stop) for stop in fields.stops if (at := text.find(stop)) >= 0]
    if not ends:
        return None
    end, stop = min(ends, key=lambda pair: pair[0])
    return text[: end if fields.include_stop_str_in_output else end - len(stop)], stop


def documents(
    answer: SyntheticCompletion, call: Call, gearbox: Mapping[str, object], request_id: str
) -> Iterator[dict[str, Any]]:
    """The chat completion, or the chunks of its stream, with `gearbox` on the last chunk."""
    common = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": call.model}
    usage = {name: answer.usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    content = {"content": None, "refusal": answer.text} if answer.refusal else {"content": answer.text}
    end = {"logprobs": None, "finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
    indices = range(answer.choices)
    if not call.stream:
        message = {"role": "assistant", "refusal": None, **content}
        choices = [{"index": index, "message": message, **end} for index in indices]
        yield {**common, "object": "chat.completion", "choices": choices, "usage": usage, "gearbox": gearbox}
        return
    options = call.body.get("stream_options")
    every = {"usage": usage} if isinstance(options, dict) and options.get("continuous_usage_stats") else {}
    chunk = {**common, "object": "chat.completion.chunk", **(every if call.wants_usage else {})}
    begin = {"delta": {"role": "assistant", **content}, "logprobs": None, "finish_reason": None}
    for index in indices:
        yield {**chunk, "choices": [{"index": index, **begin}]}
    for index in indices[:-1]:
        yield {**chunk, "choices": [{"index": index, "delta": {}, **end}]}
    last = {**chunk, "choices": [{"index": indices[-1], "delta": {}, **end}]}
    if call.wants_usage:
        yield last
        last = {**chunk, "choices": [], "usage": usage}
    yield {**last, "gearbox": gearbox}
