"""What is under way when a gateway must stop ends with a documented error, not with a cut connection."""

import asyncio

import pytest

from tests.support.answers import error_of, event_error_of
from tests.support.gateway_server import GatewayServer, Started
from tests.unit.gateway.test_gateway_admission import Client, until


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_under_way_ends_with_an_error(gateway: Started, _server: GatewayServer, stream: bool):
    engine = gateway.engines["full"]
    engine.behaviour = "hold"
    client = Client(gateway, stream=stream, model=f"{gateway.config.model.name}:full")
    until(lambda: engine.running == 1, "it is at the engine")
    if stream:
        until(lambda: gateway.variants["full"].live.pending_prefill_tokens == 0, "its first token has arrived")

    async def end() -> int:
        await asyncio.sleep(0.05)
        return gateway.app.end_requests()

    assert _server._do(end()) == 1
    response = client.answer()
    if stream:
        assert event_error_of(response)["code"] == "gateway_stopped"
        assert response.text.count("You") == 1, "what had arrived before"
    else:
        assert error_of(response, 503)["code"] == "gateway_stopped"
        assert int(response.headers["retry-after"]) > 0
    until(lambda: engine.cancelled == 1, "the engine has stopped generating")
    gateway.settle()
    engine.behaviour = "answer"
    assert gateway.chat().status_code == 200
    assert _server._do(end()) == 0


def test_a_client_that_leaves_is_not_answered(gateway: Started, _server: GatewayServer):
    engine = gateway.engines["full"]
    engine.behaviour = "hold"
    body = {"model": f"{gateway.config.model.name}:full", "messages": [{"role": "user", "content": "hello"}]}
    _server.run_and_cancel(gateway, body, lambda: engine.running)  # `CancelledError` reaches the server
