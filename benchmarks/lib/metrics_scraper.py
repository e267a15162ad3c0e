"""Scrape metrics pages in the background of a measurement, as Prometheus would."""

import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EACH_S = 1.0


@contextmanager
def scraped(pages: Sequence[str]) -> Iterator[list[float]]:
    """Scrape every page each `EACH_S` in a thread, the first time at once; yields the durations in ms.

    An error ends the thread and is raised at the end.
    """
    durations_ms: list[float] = []
    errors: list[OSError] = []
    over = threading.Event()

    def scrape() -> None:
        due = time.monotonic()
        while not over.is_set():
            for page in pages:
                started = time.perf_counter()
                try:
                    with urllib.request.urlopen(page, timeout=10) as response:
                        response.read()
                except OSError as error:
                    return errors.append(error)
                durations_ms.append((time.perf_counter() - started) * 1000)
            due += EACH_S
            over.wait(max(due - time.monotonic(), 0))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield durations_ms
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
