"""Texts as runs of their units, each run a 64-bit hash. Two different runs have the same hash with probability 2^-64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.text import Texts, buffers, folded, kinds


class Ragged(NamedTuple):
    """Hashes of many texts, end to end: text i has `hashes[ends[i] : ends[i + 1]]`."""

    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]


def units(texts: Texts | Ragged) -> Ragged:
    """The units of `normalised(text)`: a word, or one character of a script that is written without spaces (`text.ALONE`).

    Punctuation (Unicode category P, but for - / % # & @ and backslash) at a word's edges is no part of it: "Hello, world!" has
    the units of "hello world". Inside of a word it counts, and symbols (category S: + = $ and emoji) always do. A text of
    nothing but punctuation and spaces is one unit, its punctuation. An empty text has none. What is units already stays.
    """
    from dpo_data.dedup.kernels import text as kernels

    if isinstance(texts, Ragged):
        return texts
    return Ragged(*kernels.units(*buffers(folded(texts)), kinds()))


def shingles(texts: Texts | Ragged, n: int, salts: NDArray[np.uint64] | None = None) -> Ragged:
    """Every run of n units, with repetitions; of a text of fewer units all of them as one run.

    `salts`: one of each text; texts of different salts share no shingle.
    """
    return runs(units(texts), n, salts)


def runs(units: Ragged, n: int, salts: NDArray[np.uint64] | None = None) -> Ragged:
    """`shingles`, from the units."""
    from dpo_data.dedup.kernels import text as kernels

    salts = np.zeros(0, np.uint64) if salts is None else np.array(salts, np.uint64)
    return Ragged(*kernels.shingles(*units, n, salts))
