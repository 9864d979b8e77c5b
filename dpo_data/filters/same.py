"""Filters for answers that hardly differ: identical, near_identical. Tool calls are part of an answer."""

import re
from typing import Literal

from pydantic import Field

from dpo_data.dedup import keys, normalised, similarity
from dpo_data.filters.columns import Columns, Mask
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair


class Identical(FilterTable):
    """Drops a pair whose answers are the same but for case and white space."""

    type: Literal["identical"] = "identical"

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            same = _same_beside_text(pair) and normalised(_text(pair.chosen)) == normalised(_text(pair.rejected))
            return "chosen and rejected are the same text" if same else None

        def suspects(pairs: Columns) -> Mask:
            equal: Mask = keys(pairs.text("chosen")) == keys(pairs.text("rejected"))
            return equal

        return Screen(reason, suspects)


class NearIdentical(FilterTable):
    """Drops a pair whose answers share nearly all of their n-grams: a Jaccard similarity of `similarity` or more. Two answers
    with different numbers in them differ in substance, and stay."""

    type: Literal["near_identical"] = "near_identical"
    similarity: float = Field(0.9, gt=0, le=1)
    n: int = Field(3, ge=1)

    def build(self, trainer: Trainer | None) -> Screen:
        def reason(pair: PreferencePair) -> str | None:
            chosen, rejected = _text(pair.chosen), _text(pair.rejected)
            if not _same_beside_text(pair) or _numbers(chosen) != _numbers(rejected):
                return None
            alike = float(similarity([chosen], [rejected], self.n)[0])
            return f"chosen and rejected are {alike:.0%} the same {self.n}-grams" if alike >= self.similarity else None

        def suspects(pairs: Columns) -> Mask:
            alike: Mask = similarity(pairs.units("chosen"), pairs.units("rejected"), self.n) >= self.similarity
            return alike

        return Screen(reason, suspects)


def _text(answer: list[dict[str, str]]) -> str:
    return answer[-1]["content"]


def _same_beside_text(pair: PreferencePair) -> bool:
    """Whether the answers are alike in all but their last message's text: earlier turns, tool calls."""
    calls = [answer[-1].get("tool_calls") for answer in (pair.chosen, pair.rejected)]
    return calls[0] == calls[1] and pair.chosen[:-1] == pair.rejected[:-1]


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)
