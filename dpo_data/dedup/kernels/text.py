"""From folded text (`text.folded`) to hashes: of the whole text, of its units, of its shingles; and MinHash band keys of those.

Texts are an Arrow string array's buffers: `data` uint8, `offsets` int64 of rows + 1. Hashes of many rows lie end to end in one
array, and row i has those from `ends[i]` to `ends[i + 1]`.
"""

import numpy as np
from numpy.typing import NDArray

from dpo_data.dedup.kernels import kernel

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Ends = NDArray[np.int64]

SPACE, MARK, LETTER, ALONE = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
"""What a character is to a unit: it ends one, it counts only inside of one, it is part of one, it is one."""

BANDS, BAND = 20, 5
"""Bands of a MinHash signature, and hashes in a band: two sets of Jaccard 0.8 share a band with probability 0.9996."""

u64 = np.uint64
MULTIPLY = u64(0x9E3779B97F4A7C15)  # odd, and its bits look random: 2^64 / golden ratio
SEED = u64(0x2545F4914F6CDD1D)
MIX_1, MIX_2 = u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB)  # splitmix64, Steele et al. 2014
SEVENS, EIGHTS, BLANKS = u64(0x7F7F7F7F7F7F7F7F), u64(0x8080808080808080), u64(0x2020202020202020)
FULL, PLACES = u64(0xFFFFFFFFFFFFFFFF), u64(0x0001020304050607)


@kernel
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: one to one, and each bit of the result depends on every bit of x."""
    x = (x ^ (x >> u64(30))) * MIX_1
    x = (x ^ (x >> u64(27))) * MIX_2
    return x ^ (x >> u64(31))


def _from(byte: int) -> np.uint64:
    """What to add to eight bytes below 128 so that the high bit of those that are at least `byte` comes on."""
    return u64((0x80 - byte) * 0x0101010101010101)


TAB, AFTER_RETURN, SEPARATOR, AFTER_SPACE = map(_from, (9, 14, 28, 33))
ZERO, AFTER_NINE, A, AFTER_Z, LOWER_A, AFTER_LOWER_Z = map(_from, (48, 58, 65, 91, 97, 123))


@kernel
def _eight(data: Bytes, at: np.uint64) -> np.uint64:
    """Eight bytes from `at` on, which LLVM makes one load."""
    word = u64(data[at])
    for byte in range(1, 8):
        word |= u64(data[at + u64(byte)]) << u64(8 * byte)
    return word


@kernel
def _spaces(word: np.uint64) -> np.uint64:
    """The high bit of each byte that is ASCII white space to Python: 9-13, 28-32."""
    low = word & SEVENS
    return (((low + TAB) & ~(low + AFTER_RETURN)) | ((low + SEPARATOR) & ~(low + AFTER_SPACE))) & EIGHTS & ~word


@kernel
def _folded(word: np.uint64) -> np.uint64:
    """Eight bytes in lower case, with each white space as a space."""
    low, space = word & SEVENS, _spaces(word)
    upper = (low + A) & ~(low + AFTER_Z) & EIGHTS & ~word
    whole = space | (space - (space >> u64(7)))
    return ((word + (upper >> u64(2))) & ~whole) | (space >> u64(2))


@kernel
def _hash(data: Bytes, begin: np.uint64, end: np.uint64) -> tuple[np.uint64, np.uint64]:
    """A hash of at least eight bytes, folded; and whether (not 0) two white spaces meet in them.

    The sum of the mixed words, each keyed by its place, so that no step waits for another one.
    """
    last = end - u64(8)
    word = _eight(data, begin)
    spaces = _spaces(word)
    meet = spaces & (spaces << u64(8))
    total = mix(_folded(word))
    for at in range(u64(1), (end - begin) >> u64(3)):
        word = _eight(data, begin + u64(8) * at)
        meet |= _spaces(word) & _spaces(_eight(data, begin + u64(8) * at - u64(1)))
        total += mix(_folded(word) ^ (at * MULTIPLY))
    word = _eight(data, last)  # what the steps of eight left over, with some that they had
    spaces = _spaces(word)
    return total + mix(_folded(word) ^ SEED), meet | (spaces & (spaces << u64(8)))


@kernel
def _collapse(data: Bytes, begin: int, end: int, out: Bytes) -> int:
    """Copy with runs of white space as one space, and none at the edges. Returns the length, and pads with 0 to eight."""
    length, gap = 0, False
    for at in range(begin, end):
        byte = data[at]
        if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31:
            gap = length > 0
        else:
            if gap:
                out[length] = 32
                length += 1
                gap = False
            out[length] = byte
            length += 1
    out[length : max(length, 8)] = 0
    return length


@kernel
def keys(data: Bytes, offsets: Ends) -> Hashes:
    """A 64-bit hash of each text as `normalised` has it."""
    rows = len(offsets) - 1
    longest = 8
    for row in range(rows):
        longest = max(longest, offsets[row + 1] - offsets[row])
    spare = np.empty(longest, np.uint8)
    made = np.empty(rows, np.uint64)
    for row in range(rows):
        begin, end = offsets[row], offsets[row + 1]
        length, uneven, total = end - begin, u64(1), u64(0)
        if length >= 8:
            total, uneven = _hash(data, u64(begin), u64(end))
            uneven |= _spaces(u64(data[begin])) | _spaces(u64(data[end - 1]))
        if uneven != u64(0):
            length = _collapse(data, begin, end, spare)
            total = _hash(spare, u64(0), u64(max(length, 8)))[0]
        made[row] = mix(total ^ u64(length))
    return made


@kernel
def _letters(data: Bytes, at: int, end: int) -> int:
    """How many bytes from `at` on, up to eight, are ASCII letters and digits; 0 also where eight cannot be read."""
    if at + 8 > len(data):
        return 0
    word = _eight(data, u64(at))
    low = word & SEVENS
    lower = low | BLANKS
    found = ((lower + LOWER_A) & ~(lower + AFTER_LOWER_Z)) | ((low + ZERO) & ~(low + AFTER_NINE))
    others = EIGHTS & ~(found & ~word)
    if others == u64(0):
        return min(8, end - at)
    first = (others & (~others + u64(1))) >> u64(7)  # 1 in the first byte that is none
    return min(int(np.int64((first * PLACES) >> u64(56))), end - at)


@kernel
def _character(data: Bytes, at: int) -> tuple[np.uint64, int]:
    """The code point that begins at `at`, and its bytes."""
    code = u64(data[at])
    if code < u64(128):
        return code, 1
    size = 2 if code < u64(0xE0) else 3 if code < u64(0xF0) else 4
    code &= u64(0x7F) >> u64(size)
    for place in range(at + 1, at + size):
        code = code << u64(6) | u64(data[place] & 63)
    return code, size


@kernel
def _unit(data: Bytes, begin: int, end: int) -> np.uint64:
    """A hash of a unit's bytes, in lower case: one to one for the units of one length up to eight."""
    total = u64(end - begin)
    while end - begin > 8:
        total = mix(total ^ _folded(_eight(data, u64(begin)))) * MULTIPLY
        begin += 8
    last = u64(0)
    if begin + 8 <= len(data):
        last = _eight(data, u64(begin)) & (FULL >> u64(8 * (8 - (end - begin))))
    else:
        for at in range(begin, end):
            last |= u64(data[at]) << u64(8 * (at - begin))
    return mix(total * MULTIPLY ^ _folded(last))


@kernel
def units(data: Bytes, offsets: Ends, kinds: Bytes) -> tuple[Hashes, Ends]:
    """A hash of each unit of each text: see `shingles.units`."""
    rows = len(offsets) - 1
    made = np.empty((offsets[-1] - offsets[0]) // 2 + rows + 1, np.uint64)
    ends = np.zeros(rows + 1, np.int64)
    count = 0
    for row in range(rows):
        at, end, marks = offsets[row], offsets[row + 1], SEED
        begin = stop = -1  # the word so far, up to its last character that is no mark; none yet
        while at < end:
            letters = _letters(data, at, end) if data[at] != 32 else 0  # every other look would be in vain
            if letters > 0:
                begin = at if begin < 0 else begin
                at += letters
                stop = at
                continue
            code, size = _character(data, at)
            kind = kinds[code] if code < u64(len(kinds)) else ALONE if code < u64(0x40000) else LETTER
            if kind == LETTER:
                begin = at if begin < 0 else begin
                stop = at + size
            elif kind == MARK:
                marks = mix(marks ^ code)
            else:
                if begin >= 0:
                    made[count] = _unit(data, begin, stop)
                    count += 1
                    begin = -1
                if kind == ALONE:
                    made[count] = _unit(data, at, at + size)
                    count += 1
            at += size
        if begin >= 0:
            made[count] = _unit(data, begin, stop)
            count += 1
        elif count == ends[row] and marks != SEED:
            made[count] = mix(marks)
            count += 1
        ends[row + 1] = count
    return made[:count], ends


@kernel
def shingles(units: Hashes, ends: Ends, n: int, salts: Hashes) -> tuple[Hashes, Ends]:
    """A hash of each run of n units of each text, or of all its units if they are fewer; other ones where salts differ."""
    rows = len(ends) - 1
    made = np.empty(len(units), np.uint64)
    made_ends = np.zeros(rows + 1, np.int64)
    count = 0
    for row in range(rows):
        size = min(n, ends[row + 1] - ends[row])
        salt = mix(salts[row]) if len(salts) else u64(0)
        if size > 0:
            for first in range(ends[row], ends[row + 1] - size + 1):
                run = u64(0)
                for at in range(first, first + size):
                    run = run * MULTIPLY + units[at]
                made[count] = mix(run ^ salt)
                count += 1
        made_ends[row + 1] = count
    return made[:count], made_ends


@kernel
def bands(shingles: Hashes, ends: Ends, scale: NDArray[np.uint32], shift: NDArray[np.uint32]) -> Hashes:
    """Keys (BANDS, rows) of MinHash signatures: rows of one key are alike by BAND hashes. 0 where a row has no shingle."""
    rows = len(ends) - 1
    least = np.empty(BANDS * BAND, np.uint32)
    made = np.zeros((BANDS, rows), np.uint64)
    for row in range(rows):
        if ends[row] == ends[row + 1]:
            continue
        least[:] = 0xFFFFFFFF
        for at in range(ends[row], ends[row + 1]):
            hash = np.uint32(shingles[at] >> u64(32))
            for one in range(BANDS * BAND):
                least[one] = min(least[one], np.uint32(np.uint32(hash * scale[one]) + shift[one]))
        for band in range(BANDS):
            key = u64(band)
            for one in range(band * BAND, (band + 1) * BAND):
                key = mix((key ^ u64(least[one])) * MULTIPLY)
            made[band, row] = key
    return made


@kernel
def buckets(keys: Hashes) -> tuple[NDArray[np.int32], int]:
    """Number the keys that occur more than once, from 0: each row's number, or -1 where its key is alone or 0; and how many."""
    slots = 16
    while slots < 2 * len(keys):
        slots *= 2
    firsts = np.full(slots, -1, np.int32)
    made = np.full(len(keys), -1, np.int32)
    count = 0
    for row in range(len(keys)):
        if keys[row] == u64(0):
            continue
        slot = keys[row] & u64(slots - 1)
        while firsts[slot] >= 0 and keys[firsts[slot]] != keys[row]:
            slot = (slot + u64(1)) & u64(slots - 1)
        first = firsts[slot]
        if first < 0:
            firsts[slot] = row
        else:
            if made[first] < 0:
                made[first] = count
                count += 1
            made[row] = made[first]
    return made, count
