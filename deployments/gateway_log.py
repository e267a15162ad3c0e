"""Gateway log: JSON lines that a background thread writes, so that a slow disk delays no request."""

import atexit
import logging
import logging.handlers
import queue
from datetime import UTC, datetime

from deployments.ray_internals import replica_log_handlers
from serve.request.json_body import dump_json

MAX_QUEUED = 10_000  # lines; while the queue is full, further lines are dropped and counted


class JsonLogFormatter(logging.Formatter):
    """Format records about requests, which are frequent, ten times as fast as Serve's own formatter, and others with that."""

    def __init__(self, other: logging.Formatter) -> None:
        super().__init__()
        self._other = other

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        if (request := getattr(record, "request", None)) is None:
            return self._other.format(record)
        time = datetime.fromtimestamp(record.created, UTC).isoformat()
        return dump_json({"time": time, "level": record.levelname, "message": record.msg, "request": request}).decode()


class BoundedQueueHandler(logging.handlers.QueueHandler):
    """Queue handler that never blocks: while its queue is full, or the disk, it drops records, and logs how many."""

    def __init__(self, max_queued: int = MAX_QUEUED) -> None:
        super().__init__(queue.Queue(max_queued))
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Format the message now, as its arguments may change later; the formatter needs the rest of the record as it is."""
        if record.args:
            record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record, after a warning about dropped ones."""
        try:
            if self._dropped:
                warning = f"{self._dropped} log lines were dropped: the disk is too slow, or full"
                fields = {"name": record.name, "levelname": "WARNING", "levelno": 30, "msg": warning}
                self.queue.put_nowait(logging.makeLogRecord({**fields, "dropped": self._dropped}))
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def on_write_error(self, record: logging.LogRecord) -> None:
        """Count a record that a handler could not write; `handleError` of logging prints a traceback for each."""
        with self.lock:  # the thread that writes calls it
            self._dropped += getattr(record, "dropped", 1)


def log_with_serve() -> None:
    """Send Gearbox's log records to the log file of the Serve replica, unbuffered."""
    targets = replica_log_handlers()
    for handler in targets:
        if isinstance(handler, logging.FileHandler) and handler.formatter is not None:
            handler.setFormatter(JsonLogFormatter(handler.formatter))
    logger = logging.getLogger("gearbox")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not targets:
        return
    queued = BoundedQueueHandler()
    logger.addHandler(queued)
    for handler in targets:
        handler.handleError = queued.on_write_error
    writer = logging.handlers.QueueListener(queued.queue, *targets, respect_handler_level=True)
    writer.start()
    atexit.register(writer.stop)
