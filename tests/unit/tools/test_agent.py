"""An agent against a stub server that calls tools: it answers, within its limits."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from serve.config.sections import AccessConfig
from serve.gateway.auth import Gatekeeper, hash_key
from serve.tools.agent import MAX_CALLS, AgentAnswer, AgentError, run_agent
from serve.tools.haystack_tools import calculator, search_documents
from tests.support.http_server import serving


class ChatStub(BaseHTTPRequestHandler):
    """Speaks chat completions: each request takes the next of `script`, which is a message or an HTTP status."""

    script: ClassVar[list[Any]] = []
    requests: ClassVar[list[dict[str, Any]]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append({"path": self.path, "key": self.headers["authorization"], **body})
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if step == "slow":
            time.sleep(0.5)
            step = {"content": "late"}
        if isinstance(step, int):
            status, answer = step, json.dumps({"error": {"message": "the budget cannot be met", "type": "x"}})
        elif isinstance(step, str):
            status, answer = 200, step
        else:
            finish = "tool_calls" if step.get("tool_calls") else "stop"
            choice = {"index": 0, "message": {"role": "assistant", "content": None, **step}, "finish_reason": finish}
            usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
            document = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            document["gearbox"] = {"cost_usd": 0.25, "attempts": 1}
            status, answer = 200, json.dumps(document | {"usage": usage})
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())


@pytest.fixture
def model() -> Iterator[Callable[..., Any]]:
    """Runs an agent on a model that answers as scripted."""
    ChatStub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatStub)
    server.daemon_threads = False  # closing waits for late requests, which the next test would else see

    async def run(*script: Any, **more: Any) -> AgentAnswer:
        ChatStub.script = list(script)
        given = {"timeout_s": 10.0} | more
        messages = given.pop("messages", [{"role": "user", "content": "What is 40366 / 439?"}])
        tools = given.pop("tools", [calculator()])
        key = given.pop("key", "gbx-key")
        return await run_agent(messages, tools, f"{url}/v1", key, "m", **given)

    with serving(server) as url:
        yield run


def calls(*arguments: Any, name: str = "calculator") -> dict[str, Any]:
    made = [
        {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for at, given in enumerate(arguments)
    ]
    return {"tool_calls": made}


DIVIDE = {"expression": "40366/439"}


async def test_an_agent_computes_and_answers(model):
    found = await model(calls(DIVIDE), {"content": "It is 91.95."}, extra_body={"retrieval": False, "temperature": 0})
    assert (found.text, found.steps, found.finish_reason) == ("It is 91.95.", 2, "stop")
    (used,) = found.used
    assert (used.name, used.input, used.output) == ("calculator", DIVIDE, "40366 / 439 ≈ 91.949886104784")
    assert found.usage["total_tokens"] == 24
    assert (found.cost_usd, found.attempts) == (0.5, 2)
    first, second = ChatStub.requests
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer gbx-key")
    assert (first["retrieval"], first["temperature"]) == (False, 0)
    assert first["tools"][0]["function"]["name"] == "calculator"
    assert second["messages"][-1]["role"] == "tool"
    assert second["messages"][-1]["content"] == used.output


async def test_calls_of_one_step_are_all_made_and_errors_go_to_the_model(model):
    found = await model(calls(DIVIDE, {"expression": "1/0"}, {"x": 1}), calls({}, name="rm"), {"content": "done"})
    assert [use.output[:6] for use in found.used[1:3]] == ["error:"] * 2
    assert "not found" in found.used[3].output
    assert found.text == "done"


async def test_arguments_that_are_no_json_do_not_break_it(model):
    broken = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "calculator", "arguments": "{"}}]}
    assert (await model(broken, {"content": "anyway"})).text == "anyway"


async def test_steps_are_bounded(model):
    with pytest.raises(AgentError, match=r"within 3 steps \(3 calls of tools\)"):
        await model(calls(DIVIDE), max_steps=3)
    assert len(ChatStub.requests) == 3


async def test_calls_are_bounded(model):
    with pytest.raises(AgentError, match=f"more than {MAX_CALLS} calls"):
        await model(calls(*[DIVIDE] * (MAX_CALLS + 1)))
    with pytest.raises(AgentError, match=f"more than {MAX_CALLS} calls"):
        await model(calls(*[DIVIDE] * 6), max_steps=9)


async def test_time_is_bounded_for_the_model_and_for_tools(model):
    start = time.monotonic()
    with pytest.raises(AgentError, match=r"within 0\.2 s") as caught:
        await model("slow", timeout_s=0.2)
    assert caught.value.status == 504

    async def search(query: str, top_k: int) -> list[dict[str, Any]]:
        await asyncio.sleep(5)
        return []

    with pytest.raises(AgentError, match=r"within 0\.3 s"):
        await model(calls({"query": "x"}, name="search_documents"), tools=[search_documents(search)], timeout_s=0.3)
    assert time.monotonic() - start < 4, "and not the 5 s that the tool takes"


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_a_refusal_is_passed_on_once(model, status):
    with pytest.raises(AgentError, match="the budget cannot be met") as caught:
        await model(status)
    assert caught.value.status == status
    assert len(ChatStub.requests) == 1


@pytest.mark.parametrize("answer", ["[]", "not json", '{"choices": []}', '{"choices": null}'])
async def test_what_is_no_completion_is_a_clear_fault(model, answer):
    with pytest.raises(AgentError) as caught:
        await model(answer)
    assert caught.value.status == 502


async def test_a_model_that_is_not_there_is_a_clear_fault():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(AgentError, match="cannot be reached"):
            await run_agent([{"role": "user", "content": "x"}], [calculator()], address, "k", "m", timeout_s=5)


async def test_messages_that_cannot_be_read_are_refused(model):
    with pytest.raises(AgentError, match="cannot be read") as caught:
        await model({"content": "x"}, messages=[{"role": "wizard", "content": "x"}])
    assert caught.value.status == 400


async def test_the_steps_of_a_client_without_a_key_have_none_either(model):
    """Open access lets in who has no key, and refuses a key that it does not know."""
    await model({"content": "91.95"}, key="")
    gatekeeper = Gatekeeper(
        AccessConfig(allow_anonymous=True, keys=[{"sha256": hash_key("gbx-other"), "tenant": "other"}])
    )
    for request in ChatStub.requests:
        assert gatekeeper.authenticate({"authorization": request["key"]}).tenant == "anonymous"
    assert ChatStub.requests
