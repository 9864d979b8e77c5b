"""Sets of hashes compared: exact Jaccard similarity, what repeats, what one text holds of another.

Hashes of many rows lie end to end in one array, and row i has those from `ends[i]` to `ends[i + 1]`; they may repeat.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.kernels import kernel

Hashes = NDArray[np.uint64]
Ends = NDArray[np.int64]
Rows = NDArray[np.int32]
Shares = NDArray[np.float64]

u64 = np.uint64


@kernel
def _slots(ends: Ends, together: int) -> int:
    """A power of two: places for twice the hashes of any `together` rows on end."""
    slots = 16
    for row in range(len(ends) - 1):
        while slots < 2 * (ends[min(row + together, len(ends) - 1)] - ends[row]):
            slots *= 2
    return slots


@kernel
def _find(hashes: Hashes, stamps: Ends, hash: np.uint64, stamp: int) -> np.uint64:
    """The slot of a hash among the entries with this stamp, or the one that is free for it; other stamps' entries are none."""
    last = u64(len(hashes) - 1)
    slot = hash & last
    while stamps[slot] == stamp and hashes[slot] != hash:
        slot = (slot + u64(1)) & last
    return slot


@kernel
def _put(hashes: Hashes, stamps: Ends, hash: np.uint64, stamp: int) -> bool:
    """Add a hash to the entries with this stamp. Returns whether it is new."""
    slot = _find(hashes, stamps, hash, stamp)
    if stamps[slot] == stamp:
        return False
    hashes[slot], stamps[slot] = hash, stamp
    return True


@kernel
def repeats(keys: Hashes, table: Hashes) -> NDArray[np.bool_]:
    """Which keys are in the table already, or come a second time; it has room for them all, and gets them. 0 counts as 1."""
    last = u64(len(table) - 1)
    made = np.zeros(len(keys), np.bool_)
    for row in range(len(keys)):
        key = max(keys[row], u64(1))
        slot = key & last
        while table[slot] != u64(0) and table[slot] != key:
            slot = (slot + u64(1)) & last
        made[row] = table[slot] == key
        table[slot] = key
    return made


@kernel
def repetition(shingles: Hashes, ends: Ends) -> Shares:
    """The share of each row's hashes that came before in the same row."""
    slots = _slots(ends, 1)
    hashes, stamps = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    made = np.zeros(len(ends) - 1)
    for row in range(len(ends) - 1):
        new = 0
        for at in range(ends[row], ends[row + 1]):
            new += _put(hashes, stamps, shingles[at], row + 1)
        count = ends[row + 1] - ends[row]
        made[row] = (count - new) / max(1, count)
    return made


@kernel
def jaccard(a: Hashes, a_ends: Ends, b: Hashes, b_ends: Ends) -> Shares:
    """Shared over all distinct hashes, of each two rows; 1 where neither has any."""
    slots = max(_slots(a_ends, 1), _slots(b_ends, 1)) * 2
    hashes, stamps, in_both = np.empty(slots, np.uint64), np.zeros(slots, np.int64), np.empty(slots, np.bool_)
    made = np.ones(len(a_ends) - 1)
    for row in range(len(a_ends) - 1):
        union, shared = 0, 0
        for at in range(a_ends[row], a_ends[row + 1]):
            slot = _find(hashes, stamps, a[at], row + 1)
            if stamps[slot] != row + 1:
                hashes[slot], stamps[slot], in_both[slot] = a[at], row + 1, False
                union += 1
        for at in range(b_ends[row], b_ends[row + 1]):
            slot = _find(hashes, stamps, b[at], row + 1)
            if stamps[slot] != row + 1:
                hashes[slot], stamps[slot], in_both[slot] = b[at], row + 1, True
                union += 1
            elif not in_both[slot]:
                in_both[slot] = True
                shared += 1
        # what b alone holds is marked as in both too, so that its repeats add nothing
        if union > 0:
            made[row] = shared / union
    return made


@kernel
def within(shingles: Hashes, ends: Ends, groups: Ends, threshold: float) -> tuple[Ends, Shares]:
    """For each row the kept row before it in its group that is most like it by `threshold` or more, or -1; and how much."""
    rows, largest = len(ends) - 1, 0
    for group in range(len(groups) - 1):
        largest = max(largest, ends[groups[group + 1]] - ends[groups[group]])
    slots = _slots(ends[groups], 1)
    hashes, stamps = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    latest, heads = np.empty(slots, np.int64), np.empty(slots, np.int64)  # by slot: the last row that had it; who kept it
    holders, nexts = np.empty(largest, np.int64), np.empty(largest, np.int64)  # lists of the kept rows of a hash
    mine, sizes, shared = np.empty(largest, np.uint64), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    made, alike = np.full(rows, -1, np.int64), np.zeros(rows)
    for group in range(len(groups) - 1):
        listed, stamp = 0, group + 1
        for row in range(groups[group], groups[group + 1]):
            for at in range(ends[row], ends[row + 1]):
                slot = _find(hashes, stamps, shingles[at], stamp)
                if stamps[slot] != stamp:
                    hashes[slot], stamps[slot], heads[slot] = shingles[at], stamp, -1
                elif latest[slot] == row:
                    continue
                latest[slot] = row
                mine[sizes[row]] = slot
                sizes[row] += 1
                entry = heads[slot]
                while entry >= 0:
                    shared[holders[entry]] += 1
                    entry = nexts[entry]
            for other in range(groups[group], row):
                union = sizes[row] + sizes[other] - shared[other]
                share = shared[other] / union if union > 0 else 1.0
                if made[other] < 0 and share >= threshold and share > alike[row]:
                    made[row], alike[row] = other, share
                shared[other] = 0
            if made[row] < 0:
                for slot in mine[: sizes[row]]:
                    holders[listed], nexts[listed] = row, heads[slot]
                    heads[slot] = listed
                    listed += 1
    return made, alike


class Held(NamedTuple):
    """What `match` knows of the rows that share a band key with another row; these are numbered 0, 1, … in stream order.

    `buckets` (row, band): its bucket, -1 for none. By bucket: `left`, how many of its rows are still to come; `holders` from
    `starts[bucket]` on, `filled[bucket]` of them at most up to `starts[bucket + 1]`: rows that were kept. By row: `places` and
    `sizes` of its distinct shingles in `shelf`, and the last row that was compared with it, `compared`.
    """

    buckets: NDArray[np.int32]
    left: NDArray[np.int32]
    starts: Ends
    filled: NDArray[np.int32]
    holders: NDArray[np.int32]
    places: Ends
    sizes: NDArray[np.int32]
    compared: NDArray[np.int32]
    shelf: Hashes


@kernel
def _jaccard(held: Held, other: int, hashes: Hashes, stamps: Ends, stamp: int, size: int, least: float) -> float:
    """Of the `size` hashes with this stamp and a kept row's; 0 as soon as it is known to be below `least`."""
    both = size + held.sizes[other]
    misses = int(held.sizes[other] - least / (1 + least) * both) + 1  # rounding must not lose a pair at `least` itself
    shared = 0
    for at in range(held.places[other], held.places[other] + held.sizes[other]):
        if stamps[_find(hashes, stamps, held.shelf[at], stamp)] == stamp:
            shared += 1
        else:
            misses -= 1
            if misses < 0:
                return 0.0
    return float(shared / (both - shared))


@kernel
def match(held: Held, first: int, used: int, shingles: Hashes, ends: Ends, threshold: float) -> tuple[Ends, Shares, int]:
    """Decide on the rows from `first` on, whose shingles these are: the most similar kept row of their buckets, the earliest
    of several, or -1; how similar; and how much of the shelf is in use afterwards."""
    rows, slots = len(ends) - 1, _slots(ends, 1)
    hashes, stamps = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    made, alike = np.full(rows, -1, np.int64), np.zeros(rows)
    for at in range(rows):
        row, size = first + at, 0
        for one in range(ends[at], ends[at + 1]):
            if _put(hashes, stamps, shingles[one], at + 1):
                held.shelf[used + size] = shingles[one]
                size += 1
        for bucket in held.buckets[row]:
            if bucket < 0:
                continue
            held.left[bucket] -= 1
            for place in range(held.starts[bucket], held.starts[bucket] + held.filled[bucket]):
                other = held.holders[place]
                if held.compared[other] == row:
                    continue
                held.compared[other] = row
                share = _jaccard(held, other, hashes, stamps, at + 1, size, max(threshold, alike[at]))
                if share >= threshold and (share > alike[at] or (share == alike[at] and other < made[at])):
                    made[at], alike[at] = other, share
        if made[at] >= 0:
            continue
        held.places[row], held.sizes[row] = used, size
        kept = False
        for bucket in held.buckets[row]:
            if bucket >= 0 and held.left[bucket] > 0 and held.filled[bucket] < held.starts[bucket + 1] - held.starts[bucket]:
                held.holders[held.starts[bucket] + held.filled[bucket]] = row
                held.filled[bucket] += 1
                kept = True
        if kept:
            used += size
    return made, alike, used


@kernel
def index(hashes: Hashes, bits: Hashes, table: Rows) -> None:
    """Enter distinct hashes into a filter of bits and a table of their places; both sizes are powers of two."""
    last = u64(len(table) - 1)
    for at in range(len(hashes)):
        bit = (hashes[at] >> u64(32)) & u64(len(bits) * 64 - 1)
        bits[bit >> u64(6)] |= u64(1) << (bit & u64(63))
        slot = hashes[at] & last
        while table[slot] >= 0:
            slot = (slot + u64(1)) & last
        table[slot] = at


@kernel
def hits(shingles: Hashes, ends: Ends, hashes: Hashes, bits: Hashes, table: Rows) -> tuple[Rows, Rows]:
    """Which of the indexed hashes each row holds: pairs of a row and a hash's place, in the order in which they are found."""
    last, size = u64(len(table) - 1), u64(len(bits) * 64 - 1)
    found, where, count = np.empty(len(shingles), np.int32), np.empty(len(shingles), np.int32), 0
    for row in range(len(ends) - 1):
        for at in range(ends[row], ends[row + 1]):
            bit = (shingles[at] >> u64(32)) & size
            if not (bits[bit >> u64(6)] >> (bit & u64(63))) & u64(1):
                continue
            slot = shingles[at] & last
            while table[slot] >= 0 and hashes[table[slot]] != shingles[at]:
                slot = (slot + u64(1)) & last
            if table[slot] >= 0:
                found[count], where[count] = row, table[slot]
                count += 1
    return found[:count], where[:count]


class Index(NamedTuple):
    """What `overlaps` looks up. `grams` from `ends[text]` to `ends[text + 1]` are an evaluation text's distinct n-grams;
    `texts` from `starts[gram]` to `starts[gram + 1]` are those that may be overlapped once this n-gram is found."""

    grams: Rows
    ends: Ends
    texts: Rows
    starts: Ends


@kernel
def overlaps(rows: int, found: Rows, grams: Rows, index: Index, share: float) -> tuple[Rows, Shares]:
    """For each row the text of which it holds the greatest share, at least `share`; the first of several; or -1 and 0.

    `found`, `grams`: sorted, distinct pairs of a row and an n-gram's number.
    """
    checked = np.full(len(index.ends) - 1, -1, np.int32)
    made, most = np.full(rows, -1, np.int32), np.zeros(rows)
    begin = 0
    while begin < len(found):
        row, end = found[begin], begin
        while end < len(found) and found[end] == row:
            end += 1
        mine = grams[begin:end]
        for gram in mine:
            for text in index.texts[index.starts[gram] : index.starts[gram + 1]]:
                if checked[text] == row:
                    continue
                checked[text] = row
                held = 0
                for one in index.grams[index.ends[text] : index.ends[text + 1]]:
                    place = np.searchsorted(mine, one)
                    held += place < len(mine) and mine[place] == one
                got = held / (index.ends[text + 1] - index.ends[text])
                if got >= share and (got > most[row] or (got == most[row] and text < made[row])):
                    made[row], most[row] = text, got
        begin = end
    return made, most
