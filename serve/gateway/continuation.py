"""Continuation: a stream that its engine breaks off goes on at another engine, from the tokens of its prompt and answer.

The gateway requests token ids from engines and stores them. The other engine gets prompt and answer so far as the prompt of a
completion, which is exact: no text is tokenized again. The answer so far ends there at a token that completes a character and
whose text the client has, or the gateway holds for it; what is dropped after it, the client has not seen. The events of the
continuation are rewritten as those of the first engine, so that the client sees one stream.

Requests that another engine would not continue exactly end in an error, see `inexact`.
"""

import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import orjson

from serve.request.call import Call
from serve.request.json_body import dump_json

Detokenize = Callable[[Sequence[int]], Awaitable[str]]

_IDS = re.compile(rb',"token_ids":\[([\d,]*)\]')
_PROMPT_IDS = re.compile(rb'"prompt_token_ids":\[([\d,]*)\]')
_EVENT_END = b"\n\n"
_DONE = b"data: [DONE]\n\n"
_INCOMPLETE = "\ufffd"  # what a tokenizer decodes an incomplete character to
_MOST_INCOMPLETE = 4  # tokens that together are not a character yet, at most: one has at least a byte
_CONTEXT = 64  # characters that are compared, to find the end of what was sent in the answer's text
_RECENT = 8  # events whose text is compared
_SEED_STEP = 1_000_003  # a continuation must not draw the random numbers of the part before it again

#: Sampling fields that a continuation takes over unchanged; they act on each token by itself.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "stop", "include_stop_str_in_output", "stop_token_ids",
    "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids", "cache_salt", "user",
)  # fmt: skip
#: Fields that affect the prompt alone, or nothing, or that a continuation adapts.
_ADAPTED = (
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "seed", "priority",
    "return_token_ids", "top_logprobs", "request_id", "session_id", "truncate_prompt_tokens", "truncation_side", "add_special_tokens",
    "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "documents", "reasoning_effort", "parallel_tool_calls",
    "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
_KNOWN = frozenset((*_SAME, *_ADAPTED))
_NEUTRAL: Mapping[str, object] = {
    "n": 1, "tool_choice": "none", "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0, "response_format": {"type": "text"},
    "include_reasoning": True, "length_penalty": 1,
}  # fmt: skip


#: Further fields of OpenAI's and vLLM's APIs.
_OTHER = frozenset((
    "echo", "function_call", "functions", "logprobs", "modalities", "prediction", "prompt_logprobs", "reasoning", "structured_outputs", "suffix",
    "tools", "use_beam_search", "verbosity", "web_search_options",
))  # fmt: skip


class NotContinuable(Exception):
    """This stream cannot be continued exactly; `param` is the field of the request that prevents it, None where none does."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def inexact(call: Call) -> str | None:
    """The field for which another engine would not continue the answer exactly; None where it would.

    Penalties of presence and frequency count the tokens of the answer, but not of its prompt; a repetition penalty counts both.
    Guided decoding starts its grammar anew, log-probabilities have another format, several answers cannot be told apart.
    Fields that are not known are not exact.
    """
    if call.sequences > 1:
        return "n" if call.choices > 1 else "prompt"
    for name in ("include_stop_str_in_output", "ignore_eos", "return_token_ids"):
        if not isinstance(call.body.get(name), bool | None):
            return name  # the engine reads "false" as false
    for name, value in call.body.items():
        if name not in _KNOWN and value not in (None, False, "", [], {}) and value != _NEUTRAL.get(name, _KNOWN):
            return name
        if name in ("logprobs", "prompt_logprobs") and value is not None and value is not False:
            return name  # 0 requests log-probabilities too
    stop = call.body.get("stop") or []
    if not isinstance(stop, str | list) or not all(isinstance(one, str) and one for one in stop):
        return "stop"  # the engine refuses it
    if not isinstance(call.body.get("min_tokens"), int | None):
        return "min_tokens"
    if call.body.get("tool_choice", "none") != "none":
        return "tool_choice"  # also null: the engine then looks for calls, and holds text back that may begin one
    if call.body.get("min_tokens") and call.body.get("stop"):
        return "min_tokens"  # until then, stop sequences do not count
    messages = call.messages if call.endpoint == "chat" else ()
    if any(isinstance(m.get("content"), list) and not _texts_only(m["content"]) for m in messages):
        return "messages"
    return None


def loggable(field: str) -> str:
    """`field` for the log, which names fields of the API alone: those that a client makes up may hold anything."""
    return (
        f"'{field}'"
        if field in _KNOWN or field in _NEUTRAL or field in _OTHER
        else "a field that the API does not have"
    )


def _texts_only(parts: Sequence[object]) -> bool:
    return all(isinstance(part, str) or (isinstance(part, dict) and "text" in part) for part in parts)


class Continuation:
    """The tokens of one stream, and the way on at another engine. `strip` is called for every token, all else after a failure."""

    __slots__ = (
        "_again", "_base", "_call", "_committed", "_exact", "_first", "_new", "_prompt", "_raw", "_recent", "_seam", "_shows_ids", "_stops", "_tail", "_text",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self._call = call
        self._shows_ids = bool(call.body.get("return_token_ids"))  # whether the client requested ids itself
        stop = call.body.get("stop") or []
        self._stops: list[str] = [stop] if isinstance(stop, str) else stop  # type: ignore[assignment]  # see `inexact`
        self._raw: list[bytes] = []  # ids of each chunk since the last seam, as the engine wrote them
        self._committed: list[int] = []  # ids of the answer up to the last seam
        self._prompt: bytes | None = None  # ids of the prompt, as the engine wrote them
        self._first = b""  # the first event
        self._recent: deque[bytes] = deque(maxlen=_RECENT)  # the last events
        self._text: list[str] = []  # of the answer, collected where there are stop sequences
        self._tail = b""  # of the continuation: an event whose end has not arrived
        self._base = self._new = 0  # tokens of the answer before the last seam, and of the continuation
        self._again: list[int] = []  # ids of half a character, which the client has and the continuation writes again
        self._exact = True  # whether the ids of every token are known
        self._seam: _Seam | None = None

    def strip(self, data: bytes) -> bytes:
        """Keep the ids in `data`, which are whole events, and return it without those that the client did not request."""
        if self._prompt is None and (match := _PROMPT_IDS.search(data)):
            self._prompt, self._first = match[1], data
            if not self._shows_ids:
                self._first = data = data[: match.start()] + b'"prompt_token_ids":null' + data[match.end() :]
        self._recent.append(data)
        if self._stops:
            self._text += map(_text_of, data.split(_EVENT_END))
        parts = _IDS.split(data)
        if len(parts) // 2 != data.count(_EVENT_END) and any(map(_lacks_ids, data.split(_EVENT_END))):
            self._exact = False
        self._raw += parts[1::2]
        return data if self._shows_ids else b',"token_ids":null'.join(parts[::2])

    @property
    def tokens(self) -> list[int]:
        """Ids of the answer so far."""
        return [*self._committed, *_numbers(b",".join(filter(None, self._raw)))]

    @property
    def prompt(self) -> list[int]:
        """Ids of the prompt. Raises `NotContinuable` if the engine gave none."""
        if self._prompt is None or not self._exact:
            raise NotContinuable("the engine gave no token ids")
        return _numbers(self._prompt)

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.prompt) + len(self.tokens)

    async def cut(self, detokenize: Detokenize) -> Coroutine[Any, Any, None] | None:
        """Decide with how many tokens of the answer the continuation begins. Raises `NotContinuable` where that is not clear.

        Where the last token shows its text, no engine is asked before. It returns a check, if there is one to be made, that may run
        while the prompt is read, must end before anything of the continuation is sent, and raises `NotContinuable`.
        """
        tokens, text = self.tokens, ""
        if not self._stops and self._ends_in_text():
            self._begin(tokens)
            return self._check(detokenize, tokens[-_CONTEXT:], self._recent_text())
        known = len(tokens)
        sent = "".join(self._text)
        buffered = max(map(len, self._stops), default=1) - 1
        include = bool(self._call.body.get("include_stop_str_in_output"))
        if self._stops and not sent:
            tokens = []  # the client has nothing
        while tokens:
            window = tokens if self._stops else tokens[-_CONTEXT:]
            text = await detokenize(window)
            if not text.endswith(_INCOMPLETE):
                break
            if known - len(tokens) == _MOST_INCOMPLETE:
                raise NotContinuable("the answer does not end in a character")
            tokens.pop()
        if tokens and not self._stops:
            self._compare(text, self._recent_text())
        held = ""
        if self._stops and sent and tokens:
            end = len(sent) if text.startswith(sent) else len(text) - (0 if include else buffered)
            if end < 0 or not text[:end].endswith(sent[-_CONTEXT:].lstrip()):  # a first space may be missing
                raise NotContinuable("the text of the tokens differs from the answer's")
            held = text[end:]
        before = sent[-buffered:] if include and buffered else held
        self._begin(tokens)
        self._text = [sent]
        self._seam = _Seam(self._stops, before, len(held), include) if before else None
        return None

    def _begin(self, tokens: list[int]) -> None:
        """Let the continuation begin after `tokens` of the answer."""
        self._again = [*self.tokens[len(tokens) :], *self._again] if self._shows_ids else []
        self._committed, self._raw, self._tail, self._new = tokens, [], b"", 0
        self._base, self._seam = len(tokens), None

    async def _check(self, detokenize: Detokenize, tokens: Sequence[int], recent: str) -> None:
        self._compare(await detokenize(tokens), recent)

    def _compare(self, text: str, recent: str) -> None:
        """Compare the text of the last tokens with what was sent. Raises `NotContinuable`."""
        if not self._call.body.get("ignore_eos") and not _ends_alike(text, recent):  # special tokens have no text
            raise NotContinuable("the engine held text back")

    def _recent_text(self) -> str:
        return "".join(_text_of(event) for data in self._recent for event in data.split(_EVENT_END))

    def _ends_in_text(self) -> bool:
        """Whether the last event has one token and its text: engines hold text back while it ends in half a character."""
        events = (event for data in reversed(self._recent) for event in reversed(data.split(_EVENT_END)) if event)
        text = _text_of(next(events, b""))
        return bool(self._raw) and self._raw[-1].isdigit() and bool(text) and not text.endswith(_INCOMPLETE)

    @property
    def remaining(self) -> int | None:
        """Tokens that may follow; None where the request does not limit them."""
        return self._call.max_output_tokens - len(self._committed) if self._call.limits_output else None

    def payload(self, model: str, max_model_len: int, priority: int | None) -> bytes:
        """The completion that continues the answer after `cut`. Raises `NotContinuable` where nothing may follow."""
        body, committed = self._call.body, len(self._committed)
        prompt = [*self.prompt, *self._committed]
        room = max_model_len - len(prompt)
        limit = room if (remaining := self.remaining) is None else min(remaining, room)
        if limit < 1:
            raise NotContinuable("no token may follow")
        payload = {name: value for name in _SAME if (value := body.get(name)) is not None}
        payload |= {
            "model": model,
            "prompt": prompt,
            "max_tokens": limit,
            "stream": True,
            "stream_options": body.get("stream_options"),
            "return_token_ids": True,
        }
        if isinstance(least := body.get("min_tokens"), int) and least > committed:
            payload["min_tokens"] = min(least - committed, limit)
        if isinstance(seed := body.get("seed"), int):
            payload["seed"] = (seed + _SEED_STEP * committed) % 2**63
        if priority is not None:
            payload["priority"] = priority
        return dump_json(payload)

    def translate(self, data: bytes) -> bytes:
        """The continuation's events as the first engine would have written them."""
        *events, self._tail = (self._tail + data).split(_EVENT_END)
        translated = b""
        for event in events:
            translated += self._translated(event)
            if translated.endswith(_DONE):
                break
        return translated

    def usage(self) -> bytes:
        """The end of a stream whose last token has arrived, and its usage has not. Raises `NotContinuable`."""
        return self._end(len(self.tokens) - self._base)

    def _end(self, new_tokens: int) -> bytes:
        usage = self._usage(new_tokens)
        chunk = {**self._head(), "choices": [], "usage": usage}
        return b"data: " + orjson.dumps(chunk) + _EVENT_END + _DONE

    def _head(self) -> dict[str, Any]:
        first = self._first.partition(_EVENT_END)[0]
        return {
            name: value
            for name, value in orjson.loads(first[6:]).items()
            if name in ("id", "object", "created", "model")
        }

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        prompt, completion = len(self.prompt), self._base + completion_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _translated(self, event: bytes) -> bytes:
        if not _is_chunk(event):
            return event + _EVENT_END
        chunk: dict[str, Any] = orjson.loads(event[6:])
        chunk |= self._head()
        if usage := chunk.get("usage"):
            chunk["usage"] = self._usage(usage["completion_tokens"])
        ended = False
        for choice in chunk["choices"]:
            text = choice.pop("text", None) or ""
            ids = choice.get("token_ids") or []
            self._new += len(ids)
            while self._again and ids:
                if ids[0] != self._again[0]:  # which the next engine has to write, too
                    raise ValueError("the client already has the id of another token")
                self._committed.append(ids.pop(0))
                del self._again[0]
            if self._seam is not None:
                text, ended = self._seam.feed(text, choice)
                if self._seam.over:
                    self._seam = None
            choice.pop("prompt_token_ids", None)
            if self._call.endpoint == "chat":
                choice["delta"] = {"content": text}
                if choice.get("finish_reason") is None:
                    choice.pop("stop_reason", None)
            else:
                choice |= {"text": text, "prompt_token_ids": None}
        return b"data: " + orjson.dumps(chunk) + _EVENT_END + (self._end(self._new) if ended else b"")


class _Seam:
    """Stop sequences that begin before a seam and end after it: no engine sees them whole.

    Args:
        stops: the stop sequences.
        before: the text before the seam in which one may begin.
        unsent: how many of its last characters the client has not got.
        include: whether a stop sequence is part of the answer.
    """

    __slots__ = ("_before", "_include", "_longest", "_sent", "_stops", "_text", "over")

    def __init__(self, stops: Sequence[str], before: str, unsent: int, include: bool) -> None:
        self._stops, self._include = stops, include
        self._text, self._before, self._sent = before, len(before), len(before) - unsent
        self._longest = max(map(len, stops))
        self.over = False  # whether no stop sequence can begin before the seam any more

    def feed(self, text: str, choice: dict[str, Any]) -> tuple[str, bool]:
        """What to send on for `text` of `choice`, and whether the answer ends there though the engine goes on."""
        finished = choice.get("finish_reason") is not None
        self._text += text
        engines = choice.get("stop_reason") if finished else None
        whole = self._text + engines if isinstance(engines, str) and not self._include else self._text
        ends = [
            (at + len(stop), n, at)
            for n, stop in enumerate(self._stops)
            if 0 <= (at := whole.find(stop)) < self._before
        ]
        if engines in self._stops:
            ends.append((len(whole), self._stops.index(engines), self._before))
        end, n, at = min(ends, default=(0, 0, self._before))
        if at < self._before:
            stop = self._stops[n]
            cut = end if self._include else at
            choice |= {"finish_reason": "stop", "stop_reason": stop}
            self.over = True
            return self._text[self._sent : cut], not finished
        limit = len(self._text) if finished or self._include else max(self._sent, len(self._text) - self._longest + 1)
        if len(self._text) >= self._before + self._longest - 1 or finished:
            self.over, limit = True, len(self._text)
        out = self._text[self._sent : limit]
        self._sent = max(self._sent, limit)
        return out, False


def _ends_alike(text: str, other: str) -> bool:
    """Whether the shorter of two texts is the end of the longer one but for whitespace, which tokenizers may clean up."""
    a, b = "".join(text.lstrip(_INCOMPLETE).split()), "".join(other.split())
    n = min(len(a) - 1, len(b))  # the first character may be half of one, and decoded to another
    return n <= 0 or a[-n:] == b[-n:]


def _numbers(raw: bytes) -> list[int]:
    return list(map(int, raw.split(b","))) if raw else []


def _is_chunk(event: bytes) -> bool:
    return event.startswith(b"data: {") and not event.startswith(b'data: {"error"')


def _lacks_ids(event: bytes) -> bool:
    """Whether `event` has tokens whose ids are not known: it is none with a role, with usage or without anything."""
    return _is_chunk(event) and b'"role":' not in event and b'"choices":[]' not in event and not _IDS.search(event)


def _text_of(event: bytes) -> str:
    if not _is_chunk(event):
        return ""
    choices = orjson.loads(event[6:])["choices"]
    if not choices:
        return ""
    return str((choices[0]["delta"].get("content") if "delta" in choices[0] else choices[0]["text"]) or "")
