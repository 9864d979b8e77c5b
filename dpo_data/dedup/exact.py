"""Equal texts: those with the same `normalised` text, by a 64-bit hash of it.

Of a million different texts any two have the same hash with probability 3e-8.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.text import Texts, buffers, folded, slices
from dpo_data.stream import in_order

FULL = 0.75
"""The share of its slots that a table may use before it grows to twice the size: it takes 11 to 21 bytes a distinct text."""


def keys(texts: Texts) -> NDArray[np.uint64]:
    """A hash of each text, equal where `normalised` is."""
    from dpo_data.dedup.kernels import text as kernels

    made = [kernels.keys(*buffers(folded(part))) for part in slices(texts)]
    return np.concatenate(made) if made else np.zeros(0, np.uint64)


def repeats(batches: Iterable[Texts], threads: int | None = None) -> Iterator[NDArray[np.bool_]]:
    """Of each batch which texts came before, in it or in an earlier one; batches are read while earlier ones are hashed."""
    from dpo_data.dedup.kernels import sets

    table, held = np.zeros(1 << 16, np.uint64), 0
    for hashes in in_order(keys, batches, threads):
        if held + len(hashes) > FULL * len(table):
            entered = table[table != 0]
            table = np.zeros(1 << int(np.ceil(np.log2((held + len(hashes)) / FULL))), np.uint64)
            sets.repeats(entered, table)
        repeated = sets.repeats(hashes, table)
        held += len(hashes) - int(repeated.sum())
        yield repeated
