"""A table of pairs as columns of text and numbers: what the filters' quick looks read."""

import json
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpo_data.dedup import Ragged, units
from dpo_data.tables import JSONS, SOMETIMES, one_chunk

Mask = npt.NDArray[np.bool_]
"""One truth value a pair."""

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("chosen", "rejected")


class Columns:
    """Pairs in any schema of PreferencePair, column by column. Each view is made when first asked for."""

    def __init__(self, pairs: pa.Table):
        self.pairs = pairs
        self._columns: dict[str, pa.Array] = {}
        self._ends: dict[str, pa.LargeStringArray] = {}
        self._units: dict[Side, Ragged] = {}
        self._matching: dict[tuple[str, str], Mask] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def text(self, column: str) -> pa.LargeStringArray:
        """The content of each conversation's last message; of `chosen` and `rejected`, the answer."""
        if column not in self._ends:
            self._ends[column] = _last(self.column(column)).cast(pa.large_string())
        return self._ends[column]

    @cached_property
    def prompt(self) -> pa.LargeStringArray:
        """The contents of all messages of each prompt, a line break between them."""
        turns = self.column("prompt")
        if pc.all(pc.equal(pc.list_value_length(turns), 1)).as_py():
            return self.text("prompt")
        if turns.type == JSONS:
            return pa.array(["\n".join(_content(turn) for turn in one) for one in turns.to_pylist()], pa.large_string())
        contents = pa.LargeListArray.from_arrays(turns.offsets.cast(pa.int64()), turns.values.field("content"))
        return pc.binary_join(contents, "\n").cast(pa.large_string())

    def units(self, side: Side) -> Ragged:
        """The words of each answer, as `dedup.units` finds them."""
        if side not in self._units:
            self._units[side] = units(self.text(side))
        return self._units[side]

    def matching(self, column: str, pattern: str) -> Mask:
        """Which of these texts hold a match of an RE2 pattern; looked for once, however many filters ask."""
        if (column, pattern) not in self._matching:
            self._matching[column, pattern] = matches(self.text(column), pattern)
        return self._matching[column, pattern]

    @cached_property
    def whole(self) -> pa.LargeStringArray:
        """Prompt, chosen and rejected in one, a NUL between them: one look at it costs less than three."""
        separator = pa.scalar("\0", pa.large_string())
        return pc.binary_join_element_wise(self.prompt, *(self.text(side) for side in SIDES), separator)

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A column of numbers, NaN for null."""
        values: npt.NDArray[np.float64] = (
            self.column(column).cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        )
        return values

    def column(self, name: str) -> pa.Array:
        """A column as it is stored, in one chunk."""
        if name not in self._columns:
            self._columns[name] = one_chunk(self.pairs[name])
        return self._columns[name]

    @property
    def have_more(self) -> bool:
        """Whether these pairs are of a run whose prompts have more than messages: tools, or variables of the chat template."""
        return not {*SOMETIMES}.isdisjoint(self.pairs.column_names)

    def all(self) -> Mask:
        return np.ones(len(self), bool)

    def none(self) -> Mask:
        return np.zeros(len(self), bool)


def matches(texts: pa.LargeStringArray, pattern: str) -> Mask:
    """Which texts hold a match of an RE2 pattern."""
    return as_mask(pc.match_substring_regex(texts, pattern))


def as_mask(values: pa.Array) -> Mask:
    mask: Mask = values.to_numpy(zero_copy_only=False)
    return mask


def sizes(texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    """The length of each text, in bytes of UTF-8."""
    lengths: npt.NDArray[np.int64] = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return lengths


def count_bytes(texts: pa.LargeStringArray, wanted: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """How many bytes of each text's UTF-8 are wanted: `wanted[byte]` is 1 or 0."""
    counts = np.zeros(len(texts), np.int64)
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return counts
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    hits = wanted[np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]]
    filled = np.flatnonzero(np.diff(bounds))
    if len(filled):  # reduceat knows no empty stretch
        counts[filled] = np.add.reduceat(hits, bounds[filled] - bounds[0], dtype=np.int64)
    return counts


def _last(conversations: pa.ListArray) -> pa.Array:
    ends = conversations.offsets[1:].to_numpy() - 1
    if conversations.type == JSONS:
        stored = conversations.values.storage.take(pa.array(ends))
        return pa.array([_content(json.loads(turn)) for turn in stored.to_pylist()], pa.large_string())
    contents = conversations.values.field("content")
    one_each = len(ends) > 0 and ends[-1] - ends[0] == len(ends) - 1 and conversations.offsets[0].as_py() == ends[0]
    return contents[int(ends[0]) : int(ends[-1]) + 1] if one_each else contents.take(pa.array(ends))


def _content(turn: Any) -> str:
    content: str = (json.loads(turn) if isinstance(turn, str) else turn)["content"]
    return content
