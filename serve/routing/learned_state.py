"""What a gateway has learned, as bytes: a new gateway begins with it instead of with the cards alone."""

from collections.abc import Iterable
from time import time
from typing import Any

import orjson

from serve.routing.admission import Admission
from serve.routing.catalog import Variant
from serve.routing.output_lengths import OutputLengths

MAX_AGE_S = 3600.0  # of what is still used: the machine may do something else by then
_VERSION = 1


def dump(variants: Iterable[Variant], lengths: OutputLengths, admission: Admission) -> bytes:
    """The latency models, expected output lengths and margins, with the time at which they were known."""
    return orjson.dumps(
        {
            "version": _VERSION,
            "at": time(),
            "variants": {variant.name: [_identity(variant), variant.latency.state()] for variant in variants},
            "lengths": lengths.state(),
            "margins": admission.classes.state(),
        }
    )


def restore(data: bytes, variants: Iterable[Variant], lengths: OutputLengths, admission: Admission) -> bool:
    """Take over what `dump` returned, of variants with the same weights and batch size. Whether it could be used.

    Raises:
        ValueError, KeyError, TypeError, IndexError: the data is not of this version of the code, or broken.
    """
    known: dict[str, Any] = orjson.loads(data)
    if known["version"] != _VERSION or not 0 <= time() - known["at"] <= MAX_AGE_S:
        return False
    for variant in variants:
        identity, state = known["variants"].get(variant.name, (None, None))
        if identity == _identity(variant) and not variant.latency.observed:
            variant.latency.restore(state)
    lengths.restore(known["lengths"])
    admission.classes.restore(known["margins"])
    return True


def _identity(variant: Variant) -> list[object]:
    return [variant.card.weights_digest, variant.profile.hardware, variant.max_running]
