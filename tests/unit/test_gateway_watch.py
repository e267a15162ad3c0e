"""The gateway's look at its engines goes on, whatever one look meets."""

import asyncio
import logging
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from deployments import gateway
from deployments.gateway import GatewayDeployment
from deployments.retrieval import RetrievalHandle
from serve.catalog import Live
from tests.catalog import make_live_variant


class FailsFirst:
    """Replicas whose first look fails."""

    looks = 0

    def sync(self, variants: object) -> None:
        self.looks += 1
        if self.looks == 1:
            raise ConnectionError("the controller is away")

    async def refresh(self, variant: str, live: Live, session: object) -> None:
        live.looked(2, 5, 0, 0.0)


async def test_a_look_that_fails_is_logged_and_the_next_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(gateway, "REFRESH_S", 0.001)
    watcher = GatewayDeployment.__new__(GatewayDeployment)
    watcher._retrieval = RetrievalHandle(wanted=False)
    watcher._reread = AsyncMock()
    watcher._replicas, watcher._variants = FailsFirst(), {"full": make_live_variant("full")}
    hanging = asyncio.Event()  # a store that does not answer
    watcher._app = SimpleNamespace(accounts=SimpleNamespace(publish=AsyncMock(side_effect=hanging.wait)))
    task = asyncio.create_task(watcher._watch())
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if watcher._replicas.looks >= 20 and watcher._app.accounts.publish.await_count:
                break
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ConnectionError]
    assert watcher._variants["full"].live.replicas == 2
    assert watcher._replicas.looks >= 20, "a store that hangs does not hold up the looks"
    watcher._app.accounts.publish.assert_awaited()
