"""A small OpenAI server with greedy answers of exactly the requested length, with token ids, and failures of its streams."""

import asyncio
import json
from typing import Any

from aiohttp import web

from benchmarks.cluster.fault_load import Kind

CUT_AT = 20  # tokens, where a stream fails
CHUNK = "chat.completion.chunk"
CHAT = "/v1/chat/completions"
STREAM = Kind("stream", CHAT, 0.6, "m", 48, stream=True)
UNARY = Kind("unary", CHAT, 0.4, "m", 16)
GROUNDED = Kind("grounded", CHAT, 0.2, "m")
EMBEDDINGS = Kind("embeddings", "/v1/embeddings", 0.2, "")


def greedy(prompt: list[int], count: int) -> list[int]:
    """The continuation of a prompt: it depends on all of it, and does not repeat."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append((tokens[-1] * 7919 + len(tokens) * 104_729 + sum(tokens[:3])) % 49_999)
    return tokens[len(prompt) :]


def encode(text: str) -> list[int]:
    """Token ids of a text."""
    return [ord(char) for char in text]


class GreedyEngine:
    """`behaviour` is of the streams that begin from now on; `variant` is what answers say, `migrations` what they tell of."""

    def __init__(self) -> None:
        self.behaviour = "answer"  # cut, reset, error, stop, lose 3, double 3, end 3 early, migrate
        self.variant = "full"
        self.refused = False
        self.documents = self.deleted = 0
        self.requests = 0
        self.token_s = 0.0
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/v1/documents", self._document)
        app.router.add_delete("/v1/documents", self._delete)
        app.router.add_post("/v1/search", self._search)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _embed(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"embedding": [0.5]}]})

    async def _document(self, _: web.Request) -> web.Response:
        self.documents += 1
        return web.json_response({"data": []})

    async def _delete(self, _: web.Request) -> web.Response:
        self.deleted += 1
        return web.json_response({})

    async def _search(self, _: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = ['gearbox_requests_in_flight{variant="full"} 2', 'gearbox_requests_in_flight{variant="int8"} 1']
        return web.Response(text="\n".join([*lines, "gearbox_admission_requests_waiting 4", ""]))

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"choices": [{"token_ids": greedy(body["prompt"], body["max_tokens"])}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.refused:
            error = {"message": "full", "type": "overloaded", "param": None, "code": "overloaded"}
            return web.json_response({"error": error}, status=429)
        body = await request.json()
        prompt = encode(body["messages"][-1]["content"])
        tokens = greedy(prompt, body["max_tokens"])
        headers = {"x-gearbox-variant": self.variant}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": _text(tokens)}, "finish_reason": "length"}
            usage = {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(tokens),
                "total_tokens": len(prompt + tokens),
            }
            return web.json_response({**_head("chat.completion"), "choices": [choice], "usage": usage}, headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
        await response.prepare(request)
        await self._stream(request, response, prompt, tokens)
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, prompt: list[int], tokens: list[int]
    ) -> None:
        gearbox: dict[str, Any] = {"migrations": []}
        match self.behaviour.split():
            case ["lose", count]:
                tokens = tokens[:CUT_AT] + tokens[CUT_AT + int(count) :]
            case ["end", count, "early"]:
                tokens = tokens[: -int(count)]
            case ["double", count]:
                tokens = tokens[:CUT_AT] + tokens[CUT_AT - int(count) :]
            case ["migrate"]:
                other = greedy([*prompt, *tokens[:CUT_AT]], len(tokens) - CUT_AT)
                tokens = tokens[:CUT_AT] + other
                gearbox["migrations"] = [{"from": "full", "to": "int8", "at_token": CUT_AT, "reason": "broken"}]
            case ["stop"]:  # as a proxy that takes a broken stream for a whole one
                tokens = tokens[:CUT_AT]
        for i, token in enumerate(tokens):
            if i == CUT_AT and self.behaviour == "cut":
                return
            if i == CUT_AT and self.behaviour == "reset":
                assert request.transport is not None
                return request.transport.abort()
            if i == CUT_AT and self.behaviour == "error":
                error = {"message": "broken", "type": "server_error", "param": None, "code": "stream_interrupted"}
                await response.write(b"event: error\n" + _event({"error": error}))
                return
            choice = {"index": 0, "delta": {"content": _text([token])}, "token_ids": [token], "finish_reason": None}
            more = {"prompt_token_ids": prompt} if i == 0 else {}
            await response.write(_event({**_head(CHUNK), "choices": [choice], **more}))
            await asyncio.sleep(self.token_s)
        choice = {"index": 0, "delta": {}, "finish_reason": "stop" if self.behaviour == "stop" else "length"}
        last = {**_head(CHUNK), "choices": [choice], "gearbox": gearbox}
        await response.write(_event(last) + b"data: [DONE]\n\n")


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1790000000, "model": "m"}


def _text(tokens: list[int]) -> str:
    return "".join(f" {token}" for token in tokens)


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
