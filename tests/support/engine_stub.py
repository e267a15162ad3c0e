"""Stub of a vLLM replica: a small HTTP server with configurable answers and failures."""

import asyncio
import json
from typing import Any

from aiohttp import web

ANSWER = ["You", " said", ":", " "]  # then the words of the prompt, so that every client can recognise its answer
CONTEXT_ERROR = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, "
    "value=3000)"
)
OUTPUT_ERROR = (
    "max_tokens=5000 cannot be greater than max_model_len=max_total_tokens=2048. Please request fewer output tokens."
)
#: Failures before the first token: the request may be retried at another variant.
FAILURES = ["die", "500"]
_VOCABULARY: list[str] = []  # of all engines
_FIRST_ID = 1_000_000  # of its tokens: smaller ids are those of a client's own prompt
STREAM_FAILURES = [*FAILURES, "die before the first token", "error event first"]


class EngineStub:
    """`behaviour` sets how the next requests are answered; `requests` records the received ones."""

    def __init__(self) -> None:
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.reset()

    def reset(self) -> None:
        self.behaviour = "answer"
        self.at = "said"  # piece of the answer after which something "mid-stream" happens
        self.pause_s = 0.05  # of what is "slow" or done "slowly"
        self.running = 0
        self.health_status = 200
        self.detokenizes = "right"  # or "wrong", "500"
        self.cancelled = 0  # answers whose client disconnected
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.holding = 0  # streams that wait for `hold` between two tokens
        self.hold = asyncio.Event()  # "hold" waits for it between two tokens, "... when let go" before all else
        self.error = "something in the engine broke"
        self.max_prompt_chars: int | None = None  # of a chat's last message; above it, the context is exceeded
        self.generation_time_ms = 0.5
        self.ending: dict[str, Any] = {"finish_reason": "stop"}  # last fields of every choice, such as `stop_reason`
        self.calls: list[dict[str, Any]] = []  # tool calls, instead of a text

    def let_go(self) -> None:
        """Set `hold` in the stub's event loop, which setting it in another thread would not wake."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.hold.set)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health_status)

    async def _detokenize(self, request: web.Request) -> web.Response:
        if self.detokenizes != "right":
            return web.json_response({"prompt": "another text"}, status=500 if self.detokenizes == "500" else 200)
        body = await request.json()
        return web.json_response({"prompt": "".join(map(_text, body["tokens"]))})

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = request.path.endswith("/chat/completions")
        behaviour, held, _ = self.behaviour.partition(" when let go")
        if held:
            await self.hold.wait()
        match behaviour:
            case "die" | "die slowly":
                await asyncio.sleep(self.pause_s if behaviour == "die slowly" else 0)
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "500":
                return _error(500, self.error)
            case "400":
                return _error(400, self.error)
            case "400 of pydantic":
                detail = "{'type': 'float_parsing', 'loc': 'body.logit_bias.x', 'msg': 'Input should be a number', 'input': 'y'}"
                return _error(400, f"2 validation errors:\n  {detail}\n  {detail}", "body.logit_bias.x")
            case "400 of a grammar":
                return _error(400, "Invalid grammar specification: 'triggers'")
            case "400 without shape":
                return web.Response(status=400, text="<h1>Bad Request</h1>")
            case "context":
                return _error(400, CONTEXT_ERROR)
            case "max_tokens":
                return _error(400, OUTPUT_ERROR, "max_tokens")
            case "slow":
                await asyncio.sleep(self.pause_s)
        if self.max_prompt_chars is not None and len(_prompt(body)) > self.max_prompt_chars:
            return _error(400, CONTEXT_ERROR)
        words = [*ANSWER, *_prompt(body).split(" ")]
        if body.get("stream"):
            return await self._stream(request, body, words, chat)
        if self.behaviour in ("hold", "hang"):
            await self.hold.wait()
        document = self._document(words, chat, body.get("n") or 1)
        return web.Response(body=_dumps(document), content_type="application/json")

    async def _stream(
        self, request: web.Request, body: dict[str, Any], words: list[str], chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if self.behaviour == "die before the first token":
            return _abort(request, response)
        if self.behaviour == "error event first":
            await response.write(_event(_shape(500, self.error)) + b"data: [DONE]\n\n")
            return response
        if self.behaviour == "context error event first":
            await response.write(_event(_shape(400, CONTEXT_ERROR)) + b"data: [DONE]\n\n")
            return response
        if self.behaviour == "aborted first":
            usage = {**_head(chat, chunk=True), "choices": [], "usage": _usage(words, 1, len(words))}
            await response.write(_event(usage) + b"data: [DONE]\n\n")
            return response
        if self.behaviour == "hang":
            await self.hold.wait()
        for chunk in self._chunks(words, chat, body.get("n") or 1, body):
            if body["stream_options"].get("continuous_usage_stats"):
                chunk["usage"] = _usage(words, 1)
            if self.behaviour == "token and error at once" and self.at in json.dumps(chunk):
                await response.write(_event(chunk) + _event(_shape(500, self.error)))
                return response
            await response.write(_event(chunk))
            await asyncio.sleep(0)
            match self.behaviour:
                case "die mid-stream" if self.at in json.dumps(chunk):
                    await _forwarded()
                    return _abort(request, response)
                case "error event mid-stream" if self.at in json.dumps(chunk):
                    await _forwarded()
                    await response.write(_event(_shape(500, self.error)) + b"data: [DONE]\n\n")
                    return response
                case "malformed error mid-stream" if self.at in json.dumps(chunk):
                    await _forwarded()
                    await response.write(b'data: {"error":"out of memory"}\n\ndata: [DONE]\n\n')
                    return response
                case "end early" if self.at in json.dumps(chunk):
                    return response
                case "aborted by error" if self.at in json.dumps(chunk):  # as by an engine that gets SIGTERM
                    end = {"delta": {"content": " abo"}} if chat else {"text": " abo"}
                    end |= {"index": 0, "token_ids": [], "finish_reason": "abort"}
                    usage = {"choices": [], "usage": _usage(words, 1, len(words))}
                    head = _head(chat, chunk=True)
                    await response.write(_event({**head, "choices": [end]}) + _event({**head, **usage}))
                    await response.write(b"data: [DONE]\n\n")
                    return response
                case "garbage mid-stream" if self.at in json.dumps(chunk):
                    await _forwarded()
                    await response.write(b'data: {"choices":[{"index":0,"text":\n\n')
                    return _abort(request, response)
                case "hold" if self.at in json.dumps(chunk):
                    self.holding += 1
                    await self.hold.wait()
                    self.holding -= 1
        if body["stream_options"]["include_usage"]:
            last = {
                **_head(chat, chunk=True),
                "choices": [],
                "usage": _usage(words, body.get("n") or 1, _written(body)),
            }
            last["metrics"] = self._timing()
            await response.write(_event(last))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _document(self, words: list[str], chat: bool, n: int) -> dict[str, Any]:
        text = "".join(words[:4]) + " ".join(words[4:])
        message = {
            "role": "assistant",
            **({"content": None, "tool_calls": self.calls} if self.calls else {"content": text}),
        }
        choice = {"message": message} if chat else {"text": text}
        return {
            **_head(chat, chunk=False),
            "choices": [{"index": index, **choice, "logprobs": None, **self.ending} for index in range(n)],
            "usage": _usage(words, n),
            "metrics": self._timing(),
        }

    def _chunks(self, words: list[str], chat: bool, n: int, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Chunks of all choices, interleaved. Every piece of text is a token; the prompt has one for each word."""
        pieces = [*words[:4], words[4], *(f" {word}" for word in words[5:])]
        if chat:
            said = [{"content": piece} for piece in pieces] if not self.calls else [{"tool_calls": self.calls}]
            deltas = [{"delta": {"role": "assistant", "content": ""}}, *({"delta": one} for one in said)]
            end = {"delta": {"content": ""}}
        else:
            deltas, end = [{"text": piece} for piece in pieces], {"text": ""}
        head = _head(chat, chunk=True)
        if body.get("return_token_ids"):
            for delta, piece in zip(deltas[-len(pieces) :], pieces, strict=True):
                delta["token_ids"] = [_token(piece)]
            words = len(_prompt(body).split(" "))
            deltas[0]["prompt_token_ids"], end["token_ids"] = [_token(_prompt(body)), *[_token("")] * (words - 1)], []
            del deltas[: _written(body)]
        ending = {"stop_reason": None, **self.ending}
        parts = [
            *({**delta, "logprobs": None, "finish_reason": None} for delta in deltas),
            {**end, "logprobs": None, **ending},
        ]
        return [{**head, "choices": [{"index": index, **part}]} for part in parts for index in range(n)]

    def _timing(self) -> dict[str, float]:
        return {"time_to_first_token_ms": 3.0, "generation_time_ms": self.generation_time_ms, "queue_time_ms": 1.5}


async def _forwarded() -> None:
    """Wait until the gateway, which runs in the same event loop, has forwarded everything so far, however slow the machine is."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def _prompt(body: dict[str, Any]) -> str:
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    if _continues(body):
        return _text(prompt[0])
    return prompt if isinstance(prompt, str) else "tokens"


def _head(chat: bool, chunk: bool) -> dict[str, Any]:
    kind = "chat.completion" if chat else "text_completion"
    if chat and chunk:
        kind = "chat.completion.chunk"
    return {"id": "chatcmpl-1", "object": kind, "created": 1790000000, "model": "smollm2-135m"}


def _written(body: dict[str, Any]) -> int:
    """Tokens of the answer that the request has already."""
    return len(body["prompt"]) - len(_prompt(body).split(" ")) if _continues(body) else 0


def _token(text: str) -> int:
    if text not in _VOCABULARY:
        _VOCABULARY.append(text)
    return _FIRST_ID + _VOCABULARY.index(text)


def _text(token: int) -> str:
    return _VOCABULARY[token - _FIRST_ID]


def _continues(body: dict[str, Any]) -> bool:
    """Whether the prompt is one of `_token`s."""
    prompt = body.get("prompt")
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int) and prompt[0] >= _FIRST_ID


def _usage(words: list[str], n: int, written: int = 0) -> dict[str, int]:
    prompt, written = len(words) - 4 + written, n * len(words) - written
    return {"prompt_tokens": prompt, "total_tokens": prompt + written, "completion_tokens": written}


def _shape(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = "BadRequestError" if status == 400 else "InternalServerError"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _error(status: int, message: str, param: str | None = None) -> web.Response:
    return web.json_response(_shape(status, message, param), status=status)


def _abort(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return response


def _event(document: dict[str, Any]) -> bytes:
    """Errors as vLLM writes them, with `json.dumps`; chunks as pydantic does, without spaces."""
    text = json.dumps(document).encode() if "error" in document else _dumps(document)
    return b"data: " + text + b"\n\n"


def _dumps(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
