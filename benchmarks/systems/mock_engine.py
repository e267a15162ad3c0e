"""Mock engine that takes no time: OpenAI chat completions in vLLM's format, answered at once or at a fixed pace.

`max_tokens` is the number of tokens. The start of the last message sets the pace of a stream:
`step 50` sends a token each 50 ms, all streams at the same moment, like an engine step;
`scatter 50` sends a token each 50 ms, every stream with a different phase; anything else streams at once.

`python -m benchmarks.systems.mock_engine --port N` serves it bare, under uvicorn.
"""

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import orjson

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MODEL = "instant"
QUESTION = "What is a gearbox, and why does a car need one? Answer in two sentences."
_HEAD = (
    b'data: {"id":"chatcmpl-9d2c1f6c0a3e4b58","object":"chat.completion.chunk","created":1767225600,"model":"instant",'
)
_FIRST = (
    _HEAD
    + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
)
_TOKEN = (
    _HEAD
    + b'"choices":[{"index":0,"delta":{"content":" gear"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
_LAST = (
    _HEAD
    + b'"choices":[{"index":0,"delta":{"content":" gear"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}\n\n'
)
_USAGE = _HEAD + b'"choices":[],"usage":{"prompt_tokens":16,"total_tokens":%d,"completion_tokens":%d}}\n\n'
_WHOLE = (
    b'{"id":"chatcmpl-9d2c1f6c0a3e4b58","object":"chat.completion","created":1767225600,"model":"instant","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null,"tool_calls":[]},"logprobs":null,'
    b'"finish_reason":"length","stop_reason":null,"token_ids":null}],"usage":{"prompt_tokens":16,"total_tokens":%d,'
    b'"completion_tokens":%d,"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}'
)
_GAUGES = (
    b'vllm:num_requests_running{engine="0"} 0.0\n'
    b'vllm:num_requests_waiting{engine="0"} 0.0\n'
    b'vllm:kv_cache_usage_perc{engine="0"} 0.0\n'
)


class Ticker:
    """Wakes all waiting streams every `period_s`, like the steps of an engine."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._next: asyncio.Future[None] | None = None

    async def tick(self) -> None:
        """Wait for the next step."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            now = loop.time()
            loop.call_at(now - now % self._period_s + self._period_s, self._ring)
        await asyncio.shield(self._next)

    def _ring(self) -> None:
        assert self._next is not None
        self._next.set_result(None)
        self._next = None


class InstantEngine:
    """The ASGI application."""

    def __init__(self) -> None:
        self._tickers: dict[float, Ticker] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            return await send({"type": "lifespan.shutdown.complete"})
        if scope["path"] != "/v1/chat/completions":
            return await _whole(send, _GAUGES if scope["path"] == "/metrics" else b"ok", b"text/plain")
        parts = []
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = orjson.loads(b"".join(parts))
        tokens = body.get("max_tokens") or 16
        if not body.get("stream"):
            content = b" gear" * tokens
            return await _whole(send, _WHOLE % (content, 16 + tokens, tokens), b"application/json")
        pace, _, period = body["messages"][-1]["content"].partition(" ")
        usage = (body.get("stream_options") or {}).get("include_usage")
        ids = bool(body.get("return_token_ids"))
        await _stream(send, tokens, bool(usage), self._pacer(pace, period), ids=ids)

    def _pacer(self, pace: str, period: str) -> "Callable[[], Awaitable[None]] | None":
        if pace not in ("step", "scatter"):
            return None
        period_s = float(period.split()[0]) / 1000
        if pace == "step":
            return self._tickers.setdefault(period_s, Ticker(period_s)).tick
        due = asyncio.get_running_loop().time() + random.random() * period_s

        async def own_phase() -> None:
            nonlocal due
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            due += period_s

        return own_phase


def _with_ids(event: bytes) -> bytes:
    """The event as an engine writes it for a request with `return_token_ids`."""
    prompt = b',"prompt_token_ids":[' + b",".join(b"%d" % n for n in range(16)) + b"]}\n\n"
    event = event.replace(b'"token_ids":null', b'"token_ids":[12345]')
    return event.replace(b"}\n\n", prompt) if b'"role"' in event else event


async def _whole(send: Send, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(
    send: Send, tokens: int, usage: bool, pace: "Callable[[], Awaitable[None]] | None", *, ids: bool
) -> None:
    """Stream one chunk per token, as vLLM does: first a chunk with the role; the last token's has the finish reason."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    first, token, last = (_with_ids(event) if ids else event for event in (_FIRST, _TOKEN, _LAST))
    await send({"type": "http.response.body", "body": first, "more_body": True})
    for left in range(tokens, 0, -1):
        if pace is not None:
            await pace()
        await send({"type": "http.response.body", "body": token if left > 1 else last, "more_body": True})
        if pace is None:
            await asyncio.sleep(0)  # let other streams run, as in an engine's front end
    if usage:
        await send({"type": "http.response.body", "body": _USAGE % (16 + tokens, tokens), "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def answers(url: str) -> bool:
    """Whether the server returns a whole answer and a whole stream of the requested length."""
    headers = {"authorization": "Bearer none"}
    whole = httpx.post(url, json=body(3), headers=headers, timeout=10)
    if whole.status_code != 200 or whole.json()["usage"]["completion_tokens"] != 3:
        return False
    stream = httpx.post(url, json=body(3, "now"), headers=headers, timeout=10).text
    return stream.count('"content":" gear"') == 3 and "data: [DONE]" in stream


def body(tokens: int, pace: str | None = None) -> dict[str, object]:
    """Body of a chat request; streamed when `pace` is given."""
    content = f"{pace} {QUESTION}" if pace else QUESTION
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if pace else body


def main() -> None:
    """Serve the mock engine without Ray."""
    import uvicorn

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvicorn.run(InstantEngine(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
