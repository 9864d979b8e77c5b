"""Filters that look at how long the answers are: empty, length, length_gap. Lengths are in tokens, where these were counted."""

from typing import Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field, model_validator

from dpo_data.filters.columns import SIDES, Columns, Mask, as_mask
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair


class Empty(FilterTable):
    """Drops a pair whose chosen answer says nothing and calls no tool."""

    type: Literal["empty"] = "empty"

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            answer = pair.chosen[-1]
            return None if answer["content"].strip() or answer.get("tool_calls") else "the chosen answer is empty"

        def suspects(pairs: Columns) -> Mask:
            return as_mask(pc.equal(pc.utf8_trim_whitespace(pairs.text("chosen")), ""))

        return Screen(reason, suspects)


class Length(FilterTable):
    """Drops a pair of which either answer has fewer than `least` or more than `most` tokens. An answer whose tokens nobody
    counted stays: `empty` and `fits` look at the text itself."""

    type: Literal["length"] = "length"
    least: int = Field(1, ge=0)
    most: int = Field(32_768, ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> "Length":
        if self.most < self.least:
            raise ValueError(f"most is {self.most}, below least, which is {self.least}")
        return self

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            for side, count in zip(SIDES, (pair.n_tokens_chosen, pair.n_tokens_rejected), strict=True):
                if count is not None and count < self.least:
                    return f"the {side} answer has {count} tokens, fewer than {self.least}"
                if count is not None and count > self.most:
                    return f"the {side} answer has {count} tokens, more than {self.most}"
            return None

        def suspects(pairs: Columns) -> Mask:
            counts = [pairs.numbers(f"n_tokens_{side}") for side in SIDES]
            outside: Mask = np.logical_or.reduce([(count < self.least) | (count > self.most) for count in counts])
            return outside

        return Screen(reason, suspects)


class LengthGap(FilterTable):
    """Drops a pair whose answers differ by more than `most` tokens, which would teach length before anything else."""

    type: Literal["length_gap"] = "length_gap"
    most: int = Field(2048, ge=0)

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            chosen, rejected = pair.n_tokens_chosen, pair.n_tokens_rejected
            if chosen is None or rejected is None or abs(chosen - rejected) <= self.most:
                return None
            return f"{chosen} tokens against {rejected}: a gap of {abs(chosen - rejected)}, more than {self.most}"

        def suspects(pairs: Columns) -> Mask:
            apart: Mask = np.abs(pairs.numbers("n_tokens_chosen") - pairs.numbers("n_tokens_rejected")) > self.most
            return apart

        return Screen(reason, suspects)
