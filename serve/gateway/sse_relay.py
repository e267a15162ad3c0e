"""SSE relay: forward an engine's stream byte for byte and add one `gearbox` object at its end."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from serve.errors import RequestError
from serve.gateway.continuation import Continuation
from serve.request.engine_report import Choice, EngineReport, count_no_output

_FINISH = b'"finish_reason":"'
ABORTED = b'"finish_reason":"abort"'  # the engine's answer when it is stopped, or is being stopped
_USAGE = b'"usage":{'
_NO_CHOICES = b'"choices":[]'
_DATA = b"data: {"
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error":'
_EVENT_END = b"\n\n"


class EngineFault(Exception):
    """The engine reported an error as an event of a stream, sent an event that cannot be read, or ended a stream before its answer.

    `before` is what is to be sent on for the events before it.
    """

    def __init__(self, body: bytes, before: bytes = b"") -> None:
        super().__init__("the engine reported an error")
        self.body, self.before = body, before
        self.status = _status_of(body)


def count_tokens(data: bytes, done: bool = False) -> int:
    """Events in `data` but for the usage and the end marker, which is `done`: no time is spent on them in the engine."""
    return data.count(_EVENT_END) - data.count(_NO_CHOICES) - done


def splice(document: bytes, gearbox: dict[str, object]) -> bytes:
    """Add `"gearbox": {...}` as the last member of a JSON object without encoding it again."""
    end = document.rindex(b"}")
    return document[:end] + b',"gearbox":' + orjson.dumps(gearbox) + document[end:]


@dataclass(slots=True)
class StreamRelay:
    """Rewrites one SSE stream as little as possible.

    Chunks pass through untouched until the stream's end is near. The request asks the engine for usage: its usage chunk is
    passed on with the `gearbox` object when the client requested usage too; else it is dropped, and the object goes onto
    the chunk before it. So chunks that end a choice wait for the one after them, and no others do.
    """

    wants_usage: bool
    rename: tuple[bytes, bytes] | None = None  # the member `model` as the engine writes it, and as the client named it
    report: EngineReport = field(default_factory=EngineReport)
    done: bool = False
    collects: bool = False  # whether the choices' texts are collected
    echoes_only: bool = False  # whether the response is the prompt alone
    choices: dict[int, Choice] = field(default_factory=dict)  # by their index
    continuation: Continuation | None = None  # collects the token ids, where the engine returns them
    _tail: bytes = b""  # an event whose end has not arrived
    _held: bytes = b""  # the last events, held until it is known whether the `gearbox` object goes onto them

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text if 0 in self.choices else ""

    def feed(self, data: bytes) -> bytes:
        """What to send on for `data`. The usage chunk is held back: `finish` gives the end of the stream.

        Raises:
            EngineFault: the engine reported an error, or that it has aborted the request.
        """
        if (
            not self.collects
            and not self._tail
            and not self._held
            and data.endswith(_EVENT_END)
            and not _near_end(data)
        ):
            if self.continuation is not None:
                data = self.continuation.strip(data)
            return data if self.rename is None else data.replace(*self.rename)
        out = bytearray()
        for event in self._events(data):
            # text that it held back may be on that event: the client must not have it twice
            if ABORTED in event or (event.startswith(_DONE) and _FINISH not in self._held):
                raise EngineFault(b"", bytes(out))
            if self.continuation is not None:
                event = self.continuation.strip(event)
            if self.rename is not None:
                event = event.replace(*self.rename)
            if self.collects and event.startswith(_DATA):
                self._collect(event)
            if event.startswith(_DONE):
                self.done = True
                continue
            if event.startswith(_ERROR):
                raise EngineFault(event[6:], bytes(out))
            if self.echoes_only and _USAGE in event:
                chunk = orjson.loads(event[6:])
                count_no_output(chunk)
                event = b"data: " + orjson.dumps(chunk) + _EVENT_END
            if _USAGE in event and _NO_CHOICES in event:
                self.report = EngineReport.of(orjson.loads(event[6:]))
                if self.wants_usage:
                    self._held += event
                continue
            out += self._held
            self._held = event if _FINISH in event else b""
            out += b"" if self._held else event
        return bytes(out)

    @property
    def ended(self) -> bool:
        """Whether the last token has arrived: of the stream, only the usage and the end marker may be missing."""
        return bool(self._held)

    def resume(self) -> None:
        """Drop the part of an event that the interrupted engine sent last."""
        self._tail = b""

    def finish(self, gearbox: dict[str, object], more: str = "") -> bytes:
        """The last events with the `gearbox` object on them, and the end marker; `more` is added to the answer's text."""
        held = self._longer(more) if more else self._held
        return (splice(held, gearbox) if held else b"") + _DONE + _EVENT_END

    def _longer(self, more: str) -> bytes:
        """The last events with `more` text on the chunk that ends the only choice: that chunk may have text of its own."""
        last, end, usage = self._held.partition(_EVENT_END)
        chunk = orjson.loads(last[6:])
        for choice in chunk["choices"]:
            choice["delta"]["content"] = (choice["delta"].get("content") or "") + more
        return b"data: " + orjson.dumps(chunk) + end + usage

    def _collect(self, event: bytes) -> None:
        try:
            parts = orjson.loads(event[6:]).get("choices") or []
        except orjson.JSONDecodeError:
            return
        for part in parts:
            self.choices.setdefault(part.get("index", 0), Choice()).add(part)

    def _events(self, data: bytes) -> Iterator[bytes]:
        *whole, self._tail = (self._tail + data).split(_EVENT_END)
        return (event + _EVENT_END for event in whole)


def _near_end(data: bytes) -> bool:
    return _FINISH in data or _USAGE in data or _DONE in data or _ERROR in data


def _status_of(body: bytes) -> int:
    """The HTTP status in an engine's error; 500 when it says none, or nothing that can be read."""
    try:
        code = orjson.loads(body)["error"]["code"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return 500
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def error_event(error: RequestError) -> bytes:
    """An SSE `error` event, for streams that break after their first event."""
    return b"event: error\ndata: " + error.body() + _EVENT_END
