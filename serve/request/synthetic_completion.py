"""Completions produced by the gateway without a variant, honouring choices, stops, token limit and format.

The gateway has no tokenizer. `most_tokens` counts more tokens than a tokenizer makes of a text in any language, so that
what is cut by it stays within the limit.
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
#: Fields about the tokens themselves, which only a model's own answer has.
_OF_TOKENS = (
    "logprobs", "prompt_logprobs", "logprob_token_ids", "return_token_ids", "return_tokens_as_token_ids", "min_tokens",
    "ignore_eos", "stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias",
)  # fmt: skip
#: Fields that constrain an answer's text, the engine's former ones too: who sends them reads no free text.
_CONSTRAINING = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


@dataclass(slots=True, frozen=True)
class SyntheticCompletion:
    """A completion produced by the gateway without a variant; all its `choices` are the same."""

    text: str
    refusal: bool = False  # the text is told as OpenAI's `refusal`, because plain text is not what was asked for
    finish_reason: str = "stop"
    stop_reason: str | None = None  # the text of `stop` that ended it
    choices: int = 1
    usage: Mapping[str, int] = field(default_factory=dict)  # tokens that models took for it
    cost_usd: float = 0.0  # of these tokens
    attempts: int = 0  # at variants, for it

    @classmethod
    def within(cls, fields: ChatFields, text: str, *, refusal: bool = False) -> "SyntheticCompletion":
        """`text` as far as the token limit and the stops of `fields` let it go."""
        shown = text if fields.token_limit is None else _first_tokens(text, fields.token_limit)
        if (stopped := _stopped(shown, fields)) is not None:
            return cls(stopped[0], refusal, stop_reason=stopped[1], choices=fields.choices)
        return cls(shown, refusal, "stop" if shown == text else "length", choices=fields.choices)


def calls_function(body: Mapping[str, object]) -> bool:
    """Whether nothing but a call of one of the client's functions is an answer."""
    choice = body.get("tool_choice")
    must = choice == "required" or isinstance(choice, dict)
    return bool(body.get("tools") and must) or isinstance(body.get("function_call"), dict)


def takes_text(body: Mapping[str, object]) -> bool:
    """Whether free text is an answer: no JSON, no other constraint and no sound was asked for."""
    wanted, modalities = body.get("response_format"), body.get("modalities")
    free = not isinstance(wanted, dict) or wanted.get("type") in (None, "text")
    spoken = bool(body.get("audio")) or (isinstance(modalities, list) and any(one != "text" for one in modalities))
    return free and not spoken and not any(body.get(name) for name in _CONSTRAINING)


def model_only(body: Mapping[str, object]) -> str | None:
    """What `body` asks for that only a model can give; None where a text of the gateway's own will do."""
    if calls_function(body):
        return "a call of a function"
    if not takes_text(body):
        return "an answer in a given form"
    return next((f"'{name}'" for name in _OF_TOKENS if body.get(name)), None)


def most_tokens(text: str) -> int:
    """At least as many tokens as `text` has: two small letters are one, as is any other character, or each of its bytes."""
    return sum(map(_tokens, _PIECE.findall(text)))


def _tokens(piece: str) -> int:
    return 1 if piece.isascii() else len(piece.encode())


def _first_tokens(text: str, limit: int) -> str:
    """As much of `text`'s beginning as surely has at most `limit` tokens."""
    for piece in _PIECE.finditer(text):
        limit -= _tokens(piece[0])
        if limit < 0:
            return text[: piece.start()]
    return text


def may_grow(body: Mapping[str, Any], choice: Choice, tokens: int, more: str) -> bool:
    """Whether `more` may follow the text of a choice that has `tokens`: it ended by itself, and its limits hold with it."""
    if choice.finish_reason != "stop" or isinstance(choice.stop_reason, str):
        return False
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    if any(stop in choice.text + more for stop in stops):
        return False
    limit = body.get("max_tokens") if body.get("max_completion_tokens") is None else body["max_completion_tokens"]
    return limit is None or tokens + most_tokens(more) <= limit


def _stopped(text: str, fields: ChatFields) -> tuple[str, str] | None:
    """`text` up to the stop that is complete first, and that stop."""
    ends = [(at + len(stop), stop) for stop in fields.stops if (at := text.find(stop)) >= 0]
    if not ends:
        return None
    end, stop = min(ends, key=lambda one: one[0])
    return text[: end if fields.include_stop_str_in_output else end - len(stop)], stop


def documents(
    answer: SyntheticCompletion, call: Call, gearbox: Mapping[str, object], request_id: str
) -> Iterator[dict[str, Any]]:
    """The chat completion, or its stream's chunks, with `gearbox` on the last."""
    common = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": call.model}
    usage = {name: answer.usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    said = {"content": None, "refusal": answer.text} if answer.refusal else {"content": answer.text}
    end = {"logprobs": None, "finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
    indices = range(answer.choices)
    if not call.stream:
        message = {"role": "assistant", "refusal": None, **said}
        choices = [{"index": index, "message": message, **end} for index in indices]
        yield {**common, "object": "chat.completion", "choices": choices, "usage": usage, "gearbox": gearbox}
        return
    options = call.body.get("stream_options")
    every = {"usage": usage} if isinstance(options, dict) and options.get("continuous_usage_stats") else {}
    chunk = {**common, "object": "chat.completion.chunk", **(every if call.wants_usage else {})}
    begin = {"delta": {"role": "assistant", **said}, "logprobs": None, "finish_reason": None}
    for index in indices:
        yield {**chunk, "choices": [{"index": index, **begin}]}
    for index in indices[:-1]:
        yield {**chunk, "choices": [{"index": index, "delta": {}, **end}]}
    last = {**chunk, "choices": [{"index": indices[-1], "delta": {}, **end}]}
    if call.wants_usage:
        yield last
        last = {**chunk, "choices": [], "usage": usage}
    yield {**last, "gearbox": gearbox}
