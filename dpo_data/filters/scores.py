"""Filters that look at the scores: tie, margin."""

from typing import Literal

from pydantic import Field

from dpo_data.filters.columns import Columns, Mask
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair


class Tie(FilterTable):
    """Drops a pair whose margin is not above zero: equal scores do not say which answer is better, and position must not."""

    type: Literal["tie"] = "tie"

    def build(self, trainer: Trainer | None) -> Screen:
        def suspects(pairs: Columns) -> Mask:
            return ~(pairs.numbers("margin") > 0)

        return Screen(tie, suspects)


def tie(pair: PreferencePair) -> str | None:
    """NaN is no margin either."""
    if pair.margin > 0:
        return None
    if pair.margin < 0:
        return f"the chosen answer scores {pair.score_chosen:g}, less than the rejected one's {pair.score_rejected:g}"
    return f"both score {pair.score_chosen:g}"


class Margin(FilterTable):
    """Drops a pair whose scores differ by less than `least`, in the judge's own unit."""

    type: Literal["margin"] = "margin"
    least: float = Field(0, ge=0)

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            return f"the margin {pair.margin:g} is below {self.least:g}" if pair.margin < self.least else None

        def suspects(pairs: Columns) -> Mask:
            below: Mask = pairs.numbers("margin") < self.least
            return below

        return Screen(reason, suspects)
