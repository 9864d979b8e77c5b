"""The filter repetition: an answer that is caught in a loop."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from dpo_data import dedup
from dpo_data.filters.columns import SIDES, Columns, Mask, sizes
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair

TAIL = 400
"""Characters at the end of an answer that are looked at by themselves: a loop, once entered, is seldom left."""


class Repetition(FilterTable):
    """Drops a pair of which either answer repeats itself: of its n-grams, or of those of its last 400 characters, a `share` or
    more came before in it. A stretch of fewer than `least` words (or signs of a script without spaces) may: it is a refrain."""

    type: Literal["repetition"] = "repetition"
    share: float = Field(0.5, gt=0, le=1)
    n: int = Field(4, ge=1)
    least: int = Field(30, ge=1)

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            for side, answer in zip(SIDES, (pair.chosen, pair.rejected), strict=True):
                text = answer[-1]["content"]
                for of, part in ((f"the {side} answer", text), (f"the end of the {side} answer", text[-TAIL:])):
                    counts, shares = dedup.repetition([part], self.n)
                    if counts[0] >= self.least and shares[0] >= self.share:
                        return f"{shares[0]:.0%} of the {self.n}-grams of {of} came before in it"
            return None

        def suspects(pairs: Columns) -> Mask:
            repeated = pairs.none()
            for side in SIDES:
                texts = pairs.text(side)
                counts, shares = dedup.repetition(pairs.units(side), self.n)
                repeated |= (counts >= self.least) & (shares >= self.share)
                # what repeats at the end repeats in the whole; but for the n-grams of a word that the tail's start cuts
                at_end = self.share * (self.least - self.n + 1) - self.n
                long = np.flatnonzero(~repeated & (sizes(texts) > TAIL) & (shares * (counts - self.n + 1) > at_end - 0.5))
                if len(long):
                    counts, shares = dedup.repetition(pc.utf8_slice_codeunits(texts.take(pa.array(long)), -TAIL), self.n)
                    repeated[long] |= (counts >= self.least) & (shares >= self.share)
            return repeated

        return Screen(reason, suspects)
