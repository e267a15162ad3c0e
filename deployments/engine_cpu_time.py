"""CPU time of an engine without a GPU, among the metrics of its replica: it tells an engine that computes from one that stands still.

vLLM's counters move when a step ends, and a step that reads many prompts takes seconds on few cores. Beside a GPU a core may
wait by spinning, so its CPU time would prove nothing.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class EngineCpuTime(Collector):
    """The counter `gearbox_engine_cpu_seconds_total`: CPU time of all processes that this one has started, s.

    Missing while there is none.
    """

    def __init__(self) -> None:
        self._engine: list[psutil.Process] = []

    def describe(self) -> Iterator[Metric]:
        """Its name, for which nothing needs to be measured."""
        yield CounterMetricFamily("gearbox_engine_cpu_seconds", "CPU time of the engine's processes")

    def collect(self) -> Iterator[Metric]:
        """The CPU time now."""
        if not self._engine or not all(process.is_running() for process in self._engine):
            self._engine = psutil.Process(os.getpid()).children(recursive=True)
        times = []
        for process in self._engine:
            with suppress(psutil.Error):
                times.append(process.cpu_times())
        if times:
            total_s = sum(one.user + one.system for one in times)
            yield CounterMetricFamily("gearbox_engine_cpu_seconds", "CPU time of the engine's processes", total_s)


def report_engine_cpu_time(registry: CollectorRegistry = REGISTRY) -> None:
    """Add the counter to the metrics of this process, a replica's."""
    registry.register(EngineCpuTime())
