"""Unexpected exceptions: logs have their type, their place in the code and the request's id, and no message."""

import asyncio
import logging

import pytest

from serve.errors import log_unhandled, origin_of
from serve.request.json_body import dump_json
from tests.support.answers import error_of, event_error_of, streamed_or_not
from tests.support.gateway_server import Started

SECRET, PROMPT = "sk-very-secret", "my-medical-history"


def raised(function) -> Exception:
    with pytest.raises(Exception) as error:
        function()
    return error.value


class TestOrigin:
    def test_it_has_types_and_places_of_an_exception_and_of_its_cause(self):
        def fail():
            try:
                dump_json(raised)  # type: ignore[arg-type]
            except TypeError as error:
                raise KeyError(SECRET) from error

        origin = origin_of(raised(fail))
        first, _, cause = origin.partition("; from ")
        assert first.startswith("KeyError at gateway/test_unexpected_exceptions.py:")
        assert cause.startswith("TypeError at json/encoder.py:") and ", serve/request/json_body.py:" in cause
        assert SECRET not in origin and "\n" not in origin

    def test_a_context_that_was_suppressed_is_not_in_it(self):
        def fail():
            try:
                raise ValueError
            except ValueError:
                raise KeyError from None

        assert "ValueError" not in origin_of(raised(fail))

    def test_it_is_short_however_deep_the_exception_is(self):
        def deeper():
            deeper()

        def chained(left: int) -> None:
            try:
                raise ValueError(SECRET)
            except ValueError:
                if left:
                    chained(left - 1)
                raise

        assert len(origin_of(raised(deeper))) < 1000
        assert len(origin_of(raised(lambda: chained(50)))) < 1000

    def test_of_one_that_was_never_raised_there_is_no_place(self):
        assert origin_of(OSError(SECRET)) == "OSError at an unknown place"


class TestRequests:
    @streamed_or_not
    def test_neither_log_nor_response_has_the_message(self, gateway: Started, monkeypatch, caplog, stream):
        """Wherever it happens: before the request is admitted, while it is answered, and at the end of a stream."""
        caplog.set_level(logging.DEBUG)

        def broken(*_: object, **__: object) -> None:
            try:
                raise ValueError(f"cannot read '{SECRET}' and '{PROMPT}'")
            except ValueError as error:
                raise RuntimeError(f"failed at '{SECRET}'") from error

        parts = [
            "serve.gateway.app.parse_call", "serve.gateway.auth.Gatekeeper.admit", "serve.routing.router.Router.decide",
            "serve.gateway.engine_client.Engines.post", "serve.gateway.attempt_runner.gearbox_object",
        ]  # fmt: skip
        for number, part in enumerate(parts):
            with monkeypatch.context() as context:
                context.setattr(part, broken)
                response = gateway.chat(PROMPT, stream=stream, headers={"x-request-id": f"mine-{number}"})
            error = event_error_of(response) if response.status_code == 200 else error_of(response, 500)
            assert error["code"] == "internal_error" and f"mine-{number}" in error["message"], part
            assert SECRET not in response.text
            (line,) = [one for one in caplog.messages if f"request mine-{number} failed" in one]
            assert "RuntimeError at gateway/test_unexpected_exceptions.py" in line and "; from ValueError at" in line
            assert "serve/gateway/" in line
        assert SECRET not in caplog.text and PROMPT not in caplog.text


async def test_an_exception_that_nothing_waits_for_is_logged_without_its_message(caplog):
    async def fail() -> None:
        raise ValueError(SECRET)

    def called(_: object) -> None:
        raise KeyError(SECRET)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_unhandled)
    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    loop.call_soon(called, SECRET)
    del task
    await asyncio.sleep(0)
    assert "ValueError at gateway/test_unexpected_exceptions.py" in caplog.text
    assert "KeyError at gateway/test_unexpected_exceptions.py" in caplog.text
    assert SECRET not in caplog.text
