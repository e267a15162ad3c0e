"""A replica that is ejected in the moment in which its response begins."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from serve.gateway.engine_client import Engines, EngineUnreachable


async def test_a_response_that_begins_while_its_replica_is_ejected_is_not_waited_for():
    exchange = SimpleNamespace(replica=SimpleNamespace(url="http://r"), stalled=False, interrupt=None)
    response = Mock()

    async def post(*_: Any, **__: Any) -> Any:
        exchange.stalled = True  # `interrupt` was called, and has no effect any more
        return response

    engines = SimpleNamespace(_open=lambda: SimpleNamespace(post=post), _timeout=None, health=Mock())
    with pytest.raises(EngineUnreachable, match="a stalled replica"):
        await Engines._send(engines, exchange, "/v1/completions", b"{}", {}, SimpleNamespace(name="full"))
    response.close.assert_called_once()
