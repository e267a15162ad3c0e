"""Reading metrics pages now and then while something else is measured, as Prometheus would."""

import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EACH_S = 1.0


@contextmanager
def scraped(pages: Sequence[str]) -> Iterator[list[float]]:
    """Read every page each `EACH_S` from a thread meanwhile, the first time at once; how long each took, ms.

    An error ends the thread and is raised at the end.
    """
    seen: list[float] = []
    errors: list[OSError] = []
    over = threading.Event()

    def scrape() -> None:
        due = time.monotonic()
        while not over.is_set():
            for page in pages:
                began = time.perf_counter()
                try:
                    with urllib.request.urlopen(page, timeout=10) as response:
                        response.read()
                except OSError as error:
                    return errors.append(error)
                seen.append((time.perf_counter() - began) * 1000)
            due += EACH_S
            over.wait(max(due - time.monotonic(), 0))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
