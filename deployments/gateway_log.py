"""The gateway's log lines, written by a thread of their own: a slow disk holds up no request."""

import atexit
import logging
import logging.handlers
import queue
from datetime import UTC, datetime

from ray._common.formatters import JSONFormatter

from serve.request.json_body import dump_json

MAX_WAITING = 10_000  # lines; while the disk takes none for so long, further ones are counted only


class _Lines(JSONFormatter):
    """Serve's JSON; the lines about requests, of which there are many, in a tenth of the time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        if (request := getattr(record, "request", None)) is None:
            return super().format(record)
        time = datetime.fromtimestamp(record.created, UTC).isoformat()
        return dump_json({"time": time, "level": record.levelname, "message": record.msg, "request": request}).decode()


class QueuedLines(logging.handlers.QueueHandler):
    """Hands lines to the thread that writes them; never waits."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        super().__init__(queue.Queue(most))
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Word the message now, as what it is made of may change; all else of the record stays, for the formatter."""
        if record.args:
            record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put it into the queue, and before it how many found no room there."""
        try:
            if self._dropped:
                lost = f"{self._dropped} log lines were lost: the disk did not take them in time"
                self.queue.put_nowait(
                    logging.makeLogRecord({"name": record.name, "levelname": "WARNING", "levelno": 30, "msg": lost})
                )
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


def log_with_serve() -> None:
    """Send Gearbox's log lines to the replica's own log, beside Serve's, each at once: Serve itself keeps up to a thousand back."""
    targets = []
    for handler in logging.getLogger("ray.serve").handlers:
        if isinstance(handler, logging.handlers.MemoryHandler) and handler.target is not None:
            handler = handler.target
            handler.setFormatter(_Lines())
        targets.append(handler)
    logger = logging.getLogger("gearbox")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not targets:
        return
    lines = QueuedLines()
    logger.addHandler(lines)
    writer = logging.handlers.QueueListener(lines.queue, *targets, respect_handler_level=True)
    writer.start()
    atexit.register(writer.stop)
