"""Says what scores of some scenes tell of the class that they come from.

The standard deviation is that of a sample (divided by n - 1). The interval is that of Student's t for the mean of a
normal sample, two-sided, 95 %: `mean +- t(0.975, n - 1) s / sqrt(n)`. With one scene there is neither.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
NEAR_DB = 0.5
"""So near the final PSNR counts as arrived."""


class Estimate(NamedTuple):
    """Of a mean over scenes; NaN where the scenes are too few."""

    mean: float
    std: float
    """Between scenes."""
    low: float
    """End of the 95 % interval of the mean."""
    high: float
    """The other end."""
    num_scenes: int
    """Whose value is finite; the others are left out."""


def estimate(values: Float[np.ndarray, "scenes"]) -> Estimate:
    """Returns the mean of the values that are finite, with its 95 % interval over scenes."""
    import scipy.special  # a third of a second that a training need not wait for

    finite = np.asarray(values[np.isfinite(values)], np.float64)
    count = len(finite)
    mean = float(finite.mean()) if count else np.nan
    if count < 2:
        return Estimate(mean, np.nan, np.nan, np.nan, count)
    std = float(finite.std(ddof=1))
    half = float(scipy.special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * std / np.sqrt(count)
    return Estimate(mean, std, mean - half, mean + half, count)


def steps_until_near(psnr: Float[np.ndarray, "scenes stages"], stages: Sequence[int]) -> Float[np.ndarray, "scenes"]:
    """Returns for each scene the first stage from which on its PSNR stays within 0.5 dB of that of the last stage.

    It is known as finely as the stages lie; NaN where a PSNR is not finite.
    """
    reached = np.abs(psnr - psnr[:, -1:]) <= NEAR_DB
    stays = np.flip(np.logical_and.accumulate(np.flip(reached, axis=1), axis=1), axis=1)
    steps = np.asarray(stages, np.float64)[np.argmax(stays, axis=1)]
    return np.where(np.isfinite(psnr).all(axis=1), steps, np.nan)
