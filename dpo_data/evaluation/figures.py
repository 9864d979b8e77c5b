"""From what prompts add to a figure, to the figure and its interval."""

import numpy as np

from dpo_data.audit.bootstrap import Clusters, Statistic, interval
from dpo_data.evaluation.schema import Estimate


def estimate(parts: np.ndarray, statistic: Statistic) -> Estimate | None:
    """The statistic of the sums over all prompts, from what each adds, shape (prompts, k). None where it is not defined.

    The interval hangs on the order of the prompts by a hair, as on a seed: give them in the order of their ids.
    """
    clusters = Clusters(parts.shape[1])
    clusters.add(parts)
    value = float(statistic(clusters.total))
    if np.isnan(value):
        return None
    low, high = interval(clusters.sums, statistic) or (None, None)
    return Estimate(value=value, low=low, high=high)


def times(sums: np.ndarray) -> np.ndarray:
    """How many times the first two sums' ratio is the ratio of the next two."""
    over, under = sums[..., 0] * sums[..., 3], sums[..., 1] * sums[..., 2]
    found: np.ndarray = np.where(under > 0, over / np.where(under > 0, under, 1.0), np.nan)
    return found
