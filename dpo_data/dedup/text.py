"""What counts as the same text, and how many texts at once reach a kernel."""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str | None]
"""Strings in any of Arrow's string types, or a list; a null counts as empty."""

SLICE = 1 << 20
"""Bytes of text that a kernel gets at a time: enough to forget the cost of a call, and what comes of them stays cached."""

ALONE = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),  # Han iteration mark, closing mark and zero
    (0x3021, 0x3029),  # Han numerals
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo
    (0x31F0, 0x31FF),  # Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),  # Myanmar
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x1AFF0, 0x1B16F),  # Kana
)
"""Blocks of scripts that are written without spaces, up to U+1FFFF; planes 2 and 3 are all Han."""

LETTERS = frozenset("-/%#&@\\")
"""Punctuation that makes a number or a name another one: -5, 5%, C#."""


def normalised(text: str) -> str:
    """Text as it is compared: Unicode NFC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _large(texts: Texts) -> pa.LargeStringArray | pa.ChunkedArray:
    """With 64-bit offsets, into bytes that stay where they are."""
    if isinstance(texts, Sequence):
        return pa.array(texts, pa.large_string())
    return texts if texts.type == pa.large_string() else texts.cast(pa.large_string())


def folded(texts: Texts) -> pa.LargeStringArray:
    """Texts of which the kernels see `normalised`: ASCII as it is, since they fold that themselves, all others normalised."""
    texts = _large(texts)
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        texts = texts.fill_null("")
    data, offsets = buffers(texts)
    if len(texts) == 0 or data[offsets[0] : offsets[-1]].max(initial=0) < 128:
        return texts
    foreign = pc.invert(pc.string_is_ascii(texts))
    told = [normalised(text) for text in texts.filter(foreign).to_pylist()]
    return pc.replace_with_mask(texts, foreign, pa.array(told, pa.large_string()))


def buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts (uint8), and where each begins and the last one ends (int64, rows + 1), without a copy."""
    _, offsets, data = texts.buffers()
    if offsets is None or len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    at = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    read = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    for one in (read, at):
        one.flags.writeable = False  # as some of Arrow's are: a kernel is compiled again for what it may write to
    return read, at


def slices(texts: Texts) -> Iterator[pa.LargeStringArray]:
    """The same texts, about SLICE bytes at a time."""
    texts = _large(texts)
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        rows = max(1, len(chunk) * SLICE // max(1, chunk.nbytes))
        for first in range(0, len(chunk), rows):
            yield chunk.slice(first, rows)


@cache
def kinds() -> NDArray[np.uint8]:
    """What each code point below U+20000 is to a unit (SPACE, MARK, LETTER or ALONE of `kernels.text`)."""
    from dpo_data.dedup.kernels.text import ALONE as IS_UNIT
    from dpo_data.dedup.kernels.text import LETTER, MARK, SPACE

    made = np.full(0x20000, LETTER, np.uint8)
    for first, last in ALONE:
        made[first : last + 1] = IS_UNIT
    for code in range(len(made)):
        character = chr(code)
        if character.isspace():
            made[code] = SPACE
        elif unicodedata.category(character)[0] == "P" and character not in LETTERS:
            made[code] = MARK
    made.flags.writeable = False
    return made
