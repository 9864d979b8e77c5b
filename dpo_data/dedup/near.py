"""Near-duplicates in a stream larger than memory: candidates by MinHash, decided by exact Jaccard similarity."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_data.dedup.exact import keys
from dpo_data.dedup.shingles import shingles
from dpo_data.dedup.text import Texts, slices
from dpo_data.stream import in_order

if TYPE_CHECKING:
    from dpo_data.dedup.kernels.sets import Held

Salts: TypeAlias = NDArray[np.uint64] | Texts | None
Batch: TypeAlias = Texts | tuple[Texts, Salts]
"""Texts; or texts, and of each a number or a text that must be equal for two texts to be alike at all."""

Part: TypeAlias = tuple[pa.Array, NDArray[np.uint64] | None]

HOLDERS = 64
"""The most kept texts of one bucket that a further text is compared with: its first ones. A text has 20 buckets, so that
1,280 comparisons are the most that it costs, and a twin is missed only where all buckets that they share are this full."""


class Twins(NamedTuple):
    """`of` (int64): for each text the row of the kept text that it is like, which comes before it, or -1: it is kept itself.
    `similarity` (float64): their Jaccard similarity, 0 for a kept text."""

    of: NDArray[np.int64]
    similarity: NDArray[np.float64]


def near_duplicates(
    batches: Callable[[], Iterable[Batch]], threshold: float = 0.8, n: int = 5, threads: int | None = None
) -> Twins:
    """Which texts are like an earlier one that is kept: by a Jaccard similarity of their shingles of `threshold` or more.

    Texts are decided on in their order. One is dropped if a kept text has one of 20 MinHash band keys in common with it (at
    Jaccard 0.8: with probability 0.9996) and is that similar; of several the most similar one is named, then the first. Neither
    batch sizes nor threads change the result. An empty text is like no other.

    `batches` is called twice and must give the same texts each time: first for their band keys, then for those texts alone that
    share one, where any do. So texts are not held: memory is some 240 bytes a text, and 8 bytes a unit of the texts that others
    are compared with. Raises ValueError where the second reading has another number of texts.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not above 0 and at most 1")
    found, counts = _buckets(batches, n, threads)
    rows = np.flatnonzero((found >= 0).any(axis=1))
    total = len(found)
    held = _held(found[rows], counts)
    del found
    of, alike = np.full(total, -1, np.int64), np.zeros(total)
    twins_of = _matched(batches(), rows, held, total, threshold, n, threads) if len(rows) else ()
    for first, (twins, similarity) in twins_of:
        mine = rows[first : first + len(twins)]
        of[mine] = np.where(twins < 0, -1, rows[twins])
        alike[mine] = similarity
    return Twins(of, alike)


def band_keys(part: Part, n: int) -> NDArray[np.uint64]:
    """The MinHash band keys of some texts (BANDS, rows): 0 where a text has no shingle. Each band has keys of its own."""
    from dpo_data.dedup.kernels import text as kernels

    made: NDArray[np.uint64] = kernels.bands(*shingles(part[0], n, part[1]), *_hashes(kernels.BANDS * kernels.BAND))
    return made


@cache
def _hashes(count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What each hash of a signature multiplies by, and adds."""
    random = np.random.default_rng(1)  # any seed; a fixed one, so that the same texts always have the same result
    scale = random.integers(0, 2**32, count, np.uint32) | np.uint32(1)
    return scale, random.integers(0, 2**32, count, np.uint32)


def _buckets(batches: Callable[[], Iterable[Batch]], n: int, threads: int | None) -> tuple[NDArray[np.int32], int]:
    """For each text its bucket in each band (rows, BANDS), -1 where it has one alone; and how many buckets there are."""
    from dpo_data.dedup.kernels import text as kernels

    signatures = list(in_order(lambda part: band_keys(part, n), parts(batches()), threads))
    found = np.empty((sum(part.shape[1] for part in signatures), kernels.BANDS), np.int32)

    def numbered(band: int) -> int:
        column = [part[band] for part in signatures]
        found[:, band], count = kernels.buckets(np.concatenate(column) if column else np.zeros(0, np.uint64))
        return count

    counts = list(in_order(numbered, range(kernels.BANDS), threads))
    for band, before in enumerate(np.cumsum([0, *counts[:-1]])):
        np.add(found[:, band], before, out=found[:, band], where=found[:, band] >= 0, casting="unsafe")
    return found, sum(counts)


def _held(buckets: NDArray[np.int32], count: int) -> "Held":
    """What matching these rows starts from."""
    from dpo_data.dedup.kernels.sets import Held

    left = np.bincount(buckets[buckets >= 0], minlength=count).astype(np.int32)
    starts = np.concatenate(([0], np.cumsum(np.minimum(left - 1, HOLDERS))))
    return Held(
        buckets=buckets,
        left=left,
        starts=starts,
        filled=np.zeros(count, np.int32),
        holders=np.empty(starts[-1], np.int32),
        places=np.zeros(len(buckets), np.int64),
        sizes=np.zeros(len(buckets), np.int32),
        compared=np.full(len(buckets), -1, np.int32),
        shelf=np.empty(0, np.uint64),
    )


def _matched(
    batches: Iterable[Batch], rows: NDArray[np.int64], held: "Held", total: int, threshold: float, n: int, threads: int | None
) -> Iterator[tuple[int, tuple[NDArray[np.int64], NDArray[np.float64]]]]:
    """Read again the texts of these rows. Yields the first number of some of them, with their twins' numbers and similarity."""
    from dpo_data.dedup.kernels import sets

    def wanted() -> Iterator[Part]:
        seen = 0
        for texts, salts in parts(batches):
            mine = rows[slice(*np.searchsorted(rows, (seen, seen + len(texts))))] - seen
            seen += len(texts)
            yield texts.take(pa.array(mine)), None if salts is None else salts[mine]
        if seen != total:
            raise ValueError(f"{total} texts were read at first, {seen} the second time")

    first = used = 0
    for found in in_order(lambda part: shingles(part[0], n, part[1]), wanted(), threads):
        held = _with_room(held, used + len(found.hashes))
        twins, similarity, used = sets.match(held, first, used, *found, threshold)
        yield first, (twins, similarity)
        first += len(twins)


def _with_room(held: "Held", size: int) -> "Held":
    """With a shelf of at least this size."""
    if size <= len(held.shelf):
        return held
    shelf = np.empty(size + size // 4 + (1 << 16), np.uint64)
    shelf[: len(held.shelf)] = held.shelf
    return held._replace(shelf=shelf)


def parts(batches: Iterable[Batch]) -> Iterator[Part]:
    """A slice of texts at a time, with its salts as numbers."""
    for batch in batches:
        texts, salts = batch if isinstance(batch, tuple) else (batch, None)
        if salts is not None and not isinstance(salts, np.ndarray):
            salts = keys(salts)
        first = 0
        for part in slices(texts):
            yield part, None if salts is None else salts[first : first + len(part)]
            first += len(part)
