"""Texts that hold an evaluation text, or much of it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.shingles import Ragged, runs, units
from dpo_data.dedup.text import Texts, slices
from dpo_data.stream import in_order

if TYPE_CHECKING:
    from dpo_data.dedup.kernels.sets import Index


class Contamination:
    """Evaluation texts, against which others are held.

    A text is contaminated by an evaluation text if it holds at least `share` (0-1) of its distinct n-grams. One of fewer than n
    units must be held whole, as one run. An empty one contaminates nothing. n-grams are compared by 64-bit hashes: against a
    million n-grams, one of a text is mistaken for another with probability 5e-14.

    `index`, for each evaluation text: all of its n-grams; and those it is looked up by, its rarest ones. A text that lacks all
    of these holds less than `share`, so that words which many evaluation texts have in common cost nothing.
    """

    def __init__(self, texts: Iterable[str], n: int = 8, share: float = 0.5) -> None:
        from dpo_data.dedup.kernels import sets

        if not 0 < share <= 1:
            raise ValueError(f"share {share} is not above 0 and at most 1")
        self.n, self.share = n, share
        found = units(list(texts))
        counts = np.diff(found.ends)
        self.lengths = sorted({n, *counts[(counts > 0) & (counts < n)].tolist()})
        grams = runs(found, n)
        self.hashes, number = np.unique(grams.hashes, return_inverse=True)
        self.index = _index(
            number, np.repeat(np.arange(len(counts)), np.diff(grams.ends)), len(counts), len(self.hashes), share
        )
        slots = 1 << max(6, int(2 * len(self.hashes)).bit_length())
        self.bits, self.table = np.zeros(slots // 8, np.uint64), np.full(slots, -1, np.int32)
        sets.index(self.hashes, self.bits, self.table)
        for one in (self.hashes, self.bits, self.table, *self.index):
            one.flags.writeable = False  # as they come to another process: a kernel is compiled again for what it may write to

    def overlaps(self, texts: Texts, threads: int | None = 1) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """For each text the evaluation text of whose n-grams it holds most, at least `share`, or -1; and that share, or 0."""
        found = list(in_order(self._overlaps, slices(texts), threads))
        return np.concatenate([np.zeros(0, np.int32), *(of for of, _ in found)]), np.concatenate(
            [np.zeros(0), *(held for _, held in found)]
        )

    def _overlaps(self, texts: Texts) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        from dpo_data.dedup.kernels import sets

        read = units(texts)
        pairs = [self._hits(runs(read, length)) for length in self.lengths]
        rows, grams = np.divmod(np.unique(np.concatenate(pairs)), 1 << 32)
        return sets.overlaps(len(texts), rows.astype(np.int32), grams.astype(np.int32), self.index, self.share)

    def _hits(self, grams: Ragged) -> NDArray[np.int64]:
        """A row and the number of an n-gram that it holds, as one number."""
        from dpo_data.dedup.kernels import sets

        rows, found = sets.hits(*grams, self.hashes, self.bits, self.table)
        return rows.astype(np.int64) << 32 | found


def _index(number: NDArray[np.int64], text: NDArray[np.int64], texts: int, grams: int, share: float) -> "Index":
    """From pairs of an n-gram's number and the evaluation text that it stands in."""
    from dpo_data.dedup.kernels.sets import Index

    text, number = np.divmod(np.unique(text << 32 | number), 1 << 32)
    rarest = np.lexsort((np.bincount(number, minlength=grams)[number], text))
    text, number = text[rarest], number[rarest]
    sizes = np.bincount(text, minlength=texts)
    ends = np.concatenate(([0], np.cumsum(sizes)))
    # who holds `least` of a text's n-grams holds one of any size - least + 1 of them
    least = np.maximum(1, np.floor(share * sizes)).astype(np.int64)
    leads = np.arange(len(text)) - ends[text] <= (sizes - least)[text]
    order = np.argsort(number[leads], kind="stable")
    starts = np.searchsorted(number[leads][order], np.arange(grams + 1))
    return Index(number.astype(np.int32), ends, text[leads][order].astype(np.int32), starts)
