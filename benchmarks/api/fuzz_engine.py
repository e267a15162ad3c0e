"""Mock engine for fuzzing: answers at once, and rejects with vLLM's statuses what the API description does not allow.

`python -m benchmarks.api.fuzz_engine --port N` serves it under uvicorn.
"""

import argparse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from pydantic import ValidationError

from serve.gateway.openapi_requests import ChatCompletionRequest, CompletionRequest
from serve.request.json_body import read_json
from serve.validation import first_problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONTEXT = 8192  # tokens
_SALT_CHARS = 1024  # longest `cache_salt`: the tenant's name precedes the client's salt
_WORDS = 3  # characters of every answer
_REQUESTS = {"/v1/chat/completions": ChatCompletionRequest, "/v1/completions": CompletionRequest}
_EVENT_STREAM = b"text/event-stream; charset=utf-8"


async def engine(scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    if scope["path"] not in _REQUESTS:
        return await _send(send, 404, b"{}")
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    raw = b"".join(parts)
    body: Any = read_json(raw)  # as vLLM reads it: integers of any size stay exact
    if len(body.pop("cache_salt", "")) > _SALT_CHARS:
        return await _refuse(send, "'cache_salt' is too long")
    try:
        request = _REQUESTS[scope["path"]].model_validate(body)
    except ValidationError as error:
        return await _refuse(send, first_problem(error))
    longest = max(request.max_tokens or 1, getattr(request, "max_completion_tokens", None) or 1)
    if longest >= CONTEXT:
        return await _refuse(
            send, f"'max_tokens' is too large: {longest}. This model's maximum context length is {CONTEXT}"
        )
    chat = isinstance(request, ChatCompletionRequest)
    count = (request.n or 1) * (1 if chat else _prompts(request.prompt))
    usage = {"prompt_tokens": 16, "completion_tokens": _WORDS * count, "total_tokens": 16 + _WORDS * count}
    head = {"id": "chatcmpl-0", "created": 1767225600, "model": request.model}
    if not request.stream:
        kind = "chat.completion" if chat else "text_completion"
        text: dict[str, Any] = (
            {"message": {"role": "assistant", "content": " gear" * _WORDS}} if chat else {"text": " gear"}
        )
        choices = [{"index": i, **text, "logprobs": None, "finish_reason": "length"} for i in range(count)]
        return await _send(send, 200, orjson.dumps({**head, "object": kind, "choices": choices, "usage": usage}))
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    chunks = []
    for word in range(_WORDS):
        end = "length" if word == _WORDS - 1 else None
        for i in range(count):
            added: dict[str, Any] = {"delta": {"content": " gear"}} if chat else {"text": " gear"}
            choice = {"index": i, **added, "logprobs": None, "finish_reason": end}
            chunks.append({**head, "choices": [choice]})
    if request.stream_options and request.stream_options.include_usage:
        chunks.append({**head, "choices": [], "usage": usage})
    events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    await _send(send, 200, events, _EVENT_STREAM)


def _prompts(prompt: object) -> int:
    """Number of prompts in a completions body."""
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)  # type: ignore[index,arg-type]


async def _refuse(send: Send, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    await _send(send, 400, orjson.dumps({"error": error}))


async def _send(send: Send, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve it."""
    import uvicorn

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(
        engine, host="127.0.0.1", port=parser.parse_args().port, log_level="warning", access_log=False, lifespan="off"
    )


if __name__ == "__main__":
    main()
