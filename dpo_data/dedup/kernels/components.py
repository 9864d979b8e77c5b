"""Which rows hang together, by pairs of rows that have something in common."""

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.kernels import kernel

Rows = NDArray[np.int64]


@kernel
def join(earlier: Rows, a: Rows, b: Rows) -> None:
    """Put each two rows into one component. From any row `earlier`, taken again and again, leads to the first row of its
    component; at the beginning each row leads to itself."""
    for at in range(len(a)):
        one, other = a[at], b[at]
        while earlier[one] != one:
            earlier[one] = earlier[earlier[one]]
            one = earlier[one]
        while earlier[other] != other:
            earlier[other] = earlier[earlier[other]]
            other = earlier[other]
        earlier[max(one, other)] = min(one, other)


@kernel
def deal(earlier: Rows, parts: int) -> NDArray[np.int32]:
    """For each row the part, of so many, that its component falls to; -1 where it is one by itself. Components stay whole, and
    each part gets about as many rows as another. `earlier` comes to be the first row of each row's component."""
    rows = len(earlier)
    sizes, made = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    for row in range(rows):
        earlier[row] = earlier[earlier[row]]
        sizes[earlier[row]] += 1
    together, before = rows - np.sum(sizes == 1), 0
    for row in range(rows):
        first = earlier[row]
        if first != row:
            made[row] = made[first]
        elif sizes[row] > 1:
            made[row] = before * parts // together
            before += sizes[row]
    return made
