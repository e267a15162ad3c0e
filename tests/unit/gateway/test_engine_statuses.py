"""Statuses of engines: what is not the request's fault is not reported as the client's, and fails over."""

import orjson
import pytest

from serve.errors import RequestError
from serve.gateway.engine_client import EngineUnreachable
from serve.gateway.engine_errors import translate_engine_error
from serve.request.call import parse_call

CALL = parse_call(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}), "chat", "tenant")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 429, 500, 503])
def test_a_server_that_is_not_the_replica_any_more_is_left(status: int):
    """Its port may be another's: a client that got 401 would change its key."""
    assert isinstance(translate_engine_error(status, b'{"error": "Unauthorized"}', CALL), EngineUnreachable)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_engine_refuses_is_the_clients(status: int):
    error = translate_engine_error(status, b'{"error": {"message": "no", "param": "stop"}}', CALL)
    assert isinstance(error, RequestError)
    assert (error.status, error.code, error.param) == (status, "invalid_request", "stop")
