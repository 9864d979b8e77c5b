"""Texts compared with few others, exactly: two answers to one prompt, all answers to it, a text with itself."""

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.near import Twins
from dpo_data.dedup.shingles import Ragged, runs, shingles, units
from dpo_data.dedup.text import Texts, slices

TOGETHER = 2048
"""Texts, in whole groups, that a kernel gets at a time."""


def similarity(a: Texts | Ragged, b: Texts | Ragged, n: int = 3) -> NDArray[np.float64]:
    """The Jaccard similarity (0-1) of the sets of shingles of each two texts, or of their `units`; 1 for two empty ones.

    Texts of fewer than n units are alike only if all their units are the same.
    """
    from dpo_data.dedup.kernels import sets

    if isinstance(a, Ragged) or isinstance(b, Ragged):
        alike: NDArray[np.float64] = sets.jaccard(*shingles(a, n), *shingles(b, n))
        return alike
    if len(a) != len(b):
        raise ValueError(f"{len(a)} texts beside {len(b)}")
    made, first = [np.zeros(0)], 0
    for part in slices(a):
        made.append(sets.jaccard(*shingles(part, n), *shingles(b[first : first + len(part)], n)))
        first += len(part)
    return np.concatenate(made)


def within(texts: Texts, offsets: NDArray[np.int64], threshold: float = 0.9, n: int = 3) -> Twins:
    """For each text the kept one before it in its group that is most like it, by the Jaccard similarity of their shingles.

    Group i is `texts[offsets[i] : offsets[i + 1]]`, of any size. Texts without such a one are kept. Of two empty texts the
    second one is not.
    """
    from dpo_data.dedup.kernels import sets

    offsets = np.asarray(offsets, np.int64)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(texts) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must go from 0 up to {len(texts)}, the number of texts")
    made, first = [Twins(np.zeros(0, np.int64), np.zeros(0))], 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + TOGETHER)))
        last = min(last, len(offsets) - 1)
        begin, end = offsets[first], offsets[last]
        of, alike = sets.within(*shingles(texts[begin:end], n), offsets[first : last + 1] - begin, threshold)
        made.append(Twins(np.where(of < 0, -1, of + begin), alike))
        first = last
    return Twins(*map(np.concatenate, zip(*made, strict=True)))


def repetition(texts: Texts | Ragged, n: int = 4) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """How many units each text has; and the share (0-1) of its n-grams that came before in it, 0 where it has none. The texts
    may be given as their `units`."""
    from dpo_data.dedup.kernels import sets

    counts, shares = [np.zeros(0, np.int32)], [np.zeros(0)]
    for part in [texts] if isinstance(texts, Ragged) else slices(texts):
        found = units(part)
        counts.append(np.diff(found.ends).astype(np.int32))
        shares.append(sets.repetition(*runs(found, n)))
    return np.concatenate(counts), np.concatenate(shares)
