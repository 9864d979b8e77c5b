"""From sums over prompts to a figure of the report, with its count and interval."""

from collections.abc import Callable

import numpy as np

from dpo_data.audit.agreement import VERDICTS, alpha, kappa, mirrored
from dpo_data.audit.bootstrap import LIMIT, Clusters, Statistic, interval
from dpo_data.audit.schema import Figure


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum over the second: of what is counted, and of its cases."""
    cases = sums[..., 1]
    found: np.ndarray = np.where(cases > 0, sums[..., 0] / np.where(cases > 0, cases, 1.0), np.nan)
    return found


def apart(sums: np.ndarray) -> np.ndarray:
    """The first two sums' ratio less that of the next two."""
    found: np.ndarray = ratio(sums[..., :2]) - ratio(sums[..., 2:])
    return found


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Cohen's κ of a table of verdicts, flat, shape (…, 9)."""
    return kappa(mirrored(_square(sums)))


def alpha_of(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's α of the coincidences of verdicts, flat, shape (…, 9)."""
    return alpha(mirrored(_square(sums)), VERDICTS, "ordinal")


def _square(sums: np.ndarray) -> np.ndarray:
    return sums.reshape(*sums.shape[:-1], 3, 3)


class Tally:
    """What prompts add to one figure. Prompts without a case are not taken in, so they weigh nothing in its interval either.

    `statistic` makes the figure of the sums, `cases` counts what it is over; by default, the first sum over the second.
    `limit`: as in Clusters.
    """

    def __init__(
        self,
        width: int = 2,
        statistic: Statistic = ratio,
        cases: Callable[[np.ndarray], np.ndarray] = lambda parts: parts[..., 1],
        limit: int = LIMIT,
    ):
        self._clusters = Clusters(width, limit)
        self._statistic, self._cases = statistic, cases

    def add(self, *columns: np.ndarray) -> None:
        """What each prompt adds, a number of each column, in the order of the prompts."""
        parts = np.column_stack(columns).astype(float)
        self._clusters.add(parts[self._cases(parts) > 0])

    def figure(self, expected: float | None = None) -> Figure | None:
        """None where there was no case, or where the statistic is not defined."""
        total = self._clusters.total
        value = float(self._statistic(total))
        if not self._clusters.prompts or np.isnan(value):
            return None
        low, high = interval(self._clusters.sums, self._statistic) or (None, None)
        return Figure(
            value=value,
            expected=expected,
            low=low,
            high=high,
            count=round(float(self._cases(total))),
            prompts=self._clusters.prompts,
        )

    def mean(self, column: int) -> float | None:
        """A further column's sum, a case; None where there was no case."""
        total = self._clusters.total
        return round(float(total[column] / total[1]), 12) if self._clusters.prompts else None


def tables(statistic: Statistic, limit: int = LIMIT) -> Tally:
    """A tally of 3 × 3 tables, flat."""
    return Tally(9, statistic, lambda parts: parts.sum(axis=-1), limit)


def differences(limit: int = LIMIT) -> Tally:
    """A tally of how far two ratios are apart: the parts and cases of the one, then of the other."""
    return Tally(4, apart, lambda parts: parts[..., 1] + parts[..., 3], limit)
