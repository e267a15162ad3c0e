"""Fixtures of the gateway's tests: scripted retrieval, and a gateway with it."""

import pytest

from benchmarks.lib.scripted_retrieval import FakeRetrieval
from tests.support.gateway_server import Start, Started


@pytest.fixture
def retrieval() -> FakeRetrieval:
    return FakeRetrieval()


@pytest.fixture
def grounded(start_gateway: Start, retrieval: FakeRetrieval) -> Started:
    return start_gateway(
        searches=retrieval, retrieval={"collection": "docs", "timeout_s": 0.3, "verification_timeout_s": 0.3}
    )
