"""Engine priority: the deadline that a request carries to engines which schedule by priority."""

from time import perf_counter, time

from serve.config.platform import PlatformConfig
from serve.request.lifecycle import Attempt


class EnginePriority:
    """Priorities of requests at the engines of a platform, lower first."""

    def __init__(self, config: PlatformConfig) -> None:
        self._in_order_of_arrival = frozenset(  # variants whose engines schedule so: they take no priority
            variant.name
            for variant in config.variants
            if config.serving_args(variant)["scheduling_policy"] != "priority"
        )

    def of(self, attempt: Attempt) -> int | None:
        """The deadline of the attempt's first token, ms since the epoch; None for an engine that takes no priority.

        Wall-clock time, so that an engine can compare the requests of several gateways.
        """
        if attempt.variant.name in self._in_order_of_arrival:
            return None
        request, chosen = attempt.request, attempt.decision.chosen
        epoch_s = time() - perf_counter()
        if attempt.continues is not None:
            return round((epoch_s + attempt.resume_by) * 1000)
        arrived_ms = (epoch_s + request.arrived) * 1000
        return round(arrived_ms + chosen.first_token_by_ms(request.budget))
