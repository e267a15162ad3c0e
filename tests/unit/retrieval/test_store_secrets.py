"""A connection string that cannot be read, and that holds a password."""

import asyncio
import traceback

import pytest

from serve.errors import RequestError
from serve.retrieval.store.postgres import Store


@pytest.mark.parametrize("conninfo", ["postgres//user:SECRET@host/db", "host=a password=SECRET b"])
def test_the_password_is_in_no_traceback(conninfo: str):
    """Ray Serve logs the traceback of a replica that cannot start, and `gearbox status` shows its end."""
    with pytest.raises(RequestError) as raised:
        asyncio.run(Store(conninfo, 4).open())
    shown = "".join(traceback.format_exception(raised.value))
    assert raised.value.code == "retrieval_misconfigured" and "look at its connection string" in shown
    assert "SECRET" not in shown
