"""Log lines of the gateway: a slow disk blocks no request, and lost lines are counted."""

import json
import logging
import threading
import time
from logging.handlers import QueueListener

from ray._common.formatters import JSONFormatter

from deployments import gateway_log
from tests.support.waiting import eventually


class Disk(logging.Handler):
    """Takes lines only while `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.lines: list[str] = []
        self.setFormatter(gateway_log.JsonLogFormatter(JSONFormatter()))

    def emit(self, record: logging.LogRecord) -> None:
        self.open.wait()
        self.lines.append(self.format(record))


def test_a_blocked_disk_delays_no_logging_and_lost_lines_are_counted():
    disk, lines = Disk(), gateway_log.BoundedQueueHandler(max_queued=3)
    writer = QueueListener(lines.queue, disk)
    writer.start()
    logger = logging.Logger("gearbox")
    logger.addHandler(lines)
    words = ["first"]
    logger.info("the %s", words)
    words[0] = "other"
    while not lines.queue.empty():  # until the writer hangs at it
        time.sleep(0.01)
    started = time.perf_counter()
    for number in range(100):
        logger.info("request", extra={"request": {"id": number}})
    assert time.perf_counter() - started < 5
    disk.open.set()
    while not lines.queue.empty():
        time.sleep(0.01)
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("it failed")
    writer.stop()
    first, *_, lost, failed = [json.loads(line) for line in disk.lines]
    assert first["message"] == "the ['first']", "as it was then"
    assert lost["message"].endswith("log lines were dropped: the disk is too slow, or full")
    assert "ValueError: bad" in failed["exc_text"]
    requests = [json.loads(line)["request"]["id"] for line in disk.lines if "request" in json.loads(line)]
    assert requests == list(range(len(requests)))
    assert len(requests) + int(lost["message"].split()[0]) == 100


def test_a_full_disk_costs_its_lines_and_they_are_counted_once_it_has_space(tmp_path, monkeypatch, capsys):
    log = logging.FileHandler("/dev/full")
    monkeypatch.setattr(gateway_log, "replica_log_handlers", lambda: [log])
    stops = []
    monkeypatch.setattr(gateway_log.atexit, "register", stops.append)
    logger = logging.getLogger("gearbox")
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        gateway_log.log_with_serve()
        queued = logger.handlers[-1]
        for number in range(5):
            logger.info("lost %d", number)
            eventually(lambda n=number: queued._dropped == n + 1, 10, "the line is counted")
        space = tmp_path / "log"
        log.stream = space.open("w")
        logger.info("written")
        eventually(lambda: "written" in space.read_text(), 10, "the line is there")
    finally:
        stops[0]()
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
    assert space.read_text().splitlines() == ["5 log lines were dropped: the disk is too slow, or full", "written"]
    assert capsys.readouterr().err == "", "no traceback for each"


def test_a_request_is_logged_with_integers_of_any_size():
    record = logging.makeLogRecord({"msg": "request", "created": 0.5, "request": {"prompt": [{"x": 1 << 70, "é": 1}]}})
    line = json.loads(gateway_log.JsonLogFormatter(JSONFormatter()).format(record))
    assert (line["request"], line["time"]) == ({"prompt": [{"x": 1 << 70, "é": 1}]}, "1970-01-01T00:00:00.500000+00:00")
