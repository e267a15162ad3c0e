"""95% confidence intervals of what is measured on a sample. Pure numpy."""

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the standard normal's 97.5% quantile


def wilson_ci95(hits: int, items: int) -> tuple[float, float]:
    """95% interval of a share from `hits` successes in `items` independent trials (Wilson 1927, JASA 22).

    Unlike the normal approximation it stays within 0 and 1 and has a width where all or none succeed.

    Raises:
        ValueError: no items, or more hits than items.
    """
    if not 0 <= hits <= items or items == 0:
        raise ValueError(f"{hits} hits of {items} items is no share")
    share = hits / items
    scale = 1 + Z95**2 / items
    middle = share + Z95**2 / (2 * items)
    half = Z95 * math.sqrt(share * (1 - share) / items + Z95**2 / (4 * items**2))
    # at shares of 0 and 1 the ends are exactly those; rounding must not put the share outside
    return max(0.0, min(share, (middle - half) / scale)), min(1.0, max(share, (middle + half) / scale))


def bootstrap_ci95(samples: NDArray[np.float64], rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean by resampling `samples` (Efron 1979).

    One sample must be one independent draw, e.g. a sequence: positions of one sequence are not independent.
    """
    rows = np.random.default_rng(seed).integers(len(samples), size=(rounds, len(samples)))
    low, high = np.quantile(samples[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
