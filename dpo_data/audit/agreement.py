"""How far raters agree: Kendall's τ-b and W, Cohen's κ and Krippendorff's α, on arrays, with NaN for what one did not judge.

τ-b compares the order of several answers. κ and α are computed from tables that are sums over prompts, so that a bootstrap can
add them up anew. Where nothing varies, agreement is not defined, and the result is NaN.
"""

from typing import Literal

import numpy as np

Array = np.ndarray
Metric = Literal["nominal", "ordinal", "interval", "ratio"]

VERDICTS = np.array([-1.0, 0.0, 1.0])
"""The verdicts on two answers, as `orders` gives them: the second is better, a tie, the first is better."""


def orders(scores: Array) -> Array:
    """The order of every two of n answers, shape (…, n) to (…, n(n−1)/2): 1 where the first has the higher score, −1 where the
    second has, 0 for a tie, NaN where either is not judged."""
    first, second = np.triu_indices(scores.shape[-1], 1)
    found: Array = np.sign(scores[..., first] - scores[..., second])
    return found


def tau_b(x: Array, y: Array) -> Array:
    """Kendall's τ-b (1945) of each row, shapes (…, n) to (…): −1 to 1. Only what both judge counts; NaN where one ties all.

    Written as the cosine of both raters' `orders`: concordant less discordant twos, over the geometric mean of the twos that
    either one does not tie.
    """
    return tau_b_of_orders(orders(x), orders(y))


def tau_b_of_orders(x: Array, y: Array) -> Array:
    """τ-b of each row of two raters' `orders`."""
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return _ratio((x * y).sum(axis=-1), scale)


def kendall_w(ranks: Array) -> Array:
    """Kendall's W (1939), corrected for ties, shape (…, raters, n) to (…): 0 to 1, where all rank alike; 1/raters by chance.

    A rater's ranks, mid-ranks where tied, are all NaN where the rater is left out; so are all raters' of an answer that is not
    there. NaN for fewer than two raters, or where all tie all. With d a rank less the rater's mean, W is Σ(Σd)², summed within
    answers first, over m·Σd²: the textbook's 12S / (m²(n³ − n) − mΣT), since a rater's Σd² is (n³ − n − T)/12, where T is
    Σ(t³ − t) over ties of t answers.
    """
    known = ~np.isnan(ranks)
    ranks, given = np.where(known, ranks, 0.0), known.sum(axis=-1, keepdims=True)
    away = np.where(known, ranks - ranks.sum(axis=-1, keepdims=True) / np.maximum(given, 1), 0.0)
    raters = (given > 0).sum(axis=(-2, -1))
    found = _ratio((away.sum(axis=-2) ** 2).sum(axis=-1), raters * (away**2).sum(axis=(-2, -1)))
    return np.where(raters > 1, found, np.nan)


def table(a: Array, b: Array, values: Array) -> Array:
    """How often one rater gave each value where another gave each, counts, shapes (…, cases) to (…, k, k)."""
    rows = [[((a == one) & (b == other)).sum(axis=-1) for other in values] for one in values]
    found: Array = np.moveaxis(np.array(rows, dtype=float), (0, 1), (-2, -1))
    return found


def coincidences(ratings: Array, values: Array) -> Array:
    """Krippendorff's coincidences of values within units, shape (…, raters, units) to (…, k, k).

    Each unit with m ≥ 2 ratings adds m in all: every ordered two of its ratings 1/(m−1).
    """
    given = (ratings[..., None, :, :] == values[:, None, None]).sum(axis=-2).astype(float)  # values × units
    raters = given.sum(axis=-2, keepdims=True)
    shares = np.where(raters > 1, given / np.maximum(raters - 1, 1.0), 0.0)
    found: Array = shares @ given.swapaxes(-1, -2) - shares.sum(axis=-1)[..., None] * np.eye(len(values))
    return found


def mirrored(table: Array) -> Array:
    """A table of verdicts, shape (…, 3, 3), in which each two counts half in either direction: which of two answers is called
    the first means nothing. So ordinal and interval α are the same."""
    found: Array = (table + table[..., ::-1, ::-1]) / 2
    return found


def kappa(table: Array) -> Array:
    """Cohen's κ (1960) for nominal values, shape (…, k, k) to (…): (agreement − chance) / (1 − chance), at most 1."""
    total = table.sum(axis=(-2, -1))
    agreed = np.trace(table, axis1=-2, axis2=-1) * total
    chance = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1)
    return _ratio(agreed - chance, total * total - chance)


def alpha(coincidences: Array, values: Array, metric: Metric) -> Array:
    """Krippendorff's α (2011, "Computing Krippendorff's Alpha-Reliability"), shape (…, k, k) to (…): 1 − observed disagreement
    / expected one, at most 1. `values`, k of them in their order, are those of the table's rows and columns.

    The ordinal metric is the interval metric between the mid-ranks of the values.
    """
    marginal = coincidences.sum(axis=-1)
    total = marginal.sum(axis=-1)
    if metric == "nominal":
        distance = 1.0 - np.eye(len(values))
    elif metric == "ratio":
        distance = np.nan_to_num(_ratio(values[:, None] - values, values[:, None] + values)) ** 2
    else:
        at = np.cumsum(marginal, axis=-1) - marginal / 2 if metric == "ordinal" else values
        distance = (at[..., :, None] - at[..., None, :]) ** 2
    observed = (coincidences * distance).sum(axis=(-2, -1)) * (total - 1)
    expected = (marginal[..., :, None] * marginal[..., None, :] * distance).sum(axis=(-2, -1))
    return 1.0 - _ratio(observed, expected)


def _ratio(part: Array, whole: Array) -> Array:
    """NaN where the whole is 0, which it may miss by rounding."""
    zero = np.abs(whole) < 1e-12
    found: Array = np.where(zero, np.nan, part / np.where(zero, 1.0, whole))
    return found
