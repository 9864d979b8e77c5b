"""The table `[pair]`."""

from typing import Literal

from pydantic import Field, model_validator

from dpo_data.config.share import Share
from dpo_data.filters import DEFAULTS, Filters
from dpo_data.seams import Settings


class Pair(Settings):
    """How rankings become pairs.

    `strategy`: `auto` is best_worst, and from 32 candidates on best_vs_mu_2sigma. `max_pairs` caps adjacent, all and threshold,
    a prompt. `chosen_from` and `rejected_to` are the scores of `threshold`. `test` is the share of prompts whose pairs go to
    test.parquet. `reject_truncated`: whether a cut-off answer may be rejected; it is never chosen.

    `length_control` takes out of the scores what goes with length, over the whole run, before the strategy sees them. True
    quality that goes with length, as of answers that are longer because they are complete, is taken out as well: so it is off.
    """

    strategy: Literal["auto", "best_worst", "best_vs_mu_2sigma", "best_random", "adjacent", "all", "threshold"] = "auto"
    max_pairs: int = Field(10, ge=1)
    chosen_from: float | None = None
    rejected_to: float | None = None
    test: Share = 0.05
    reject_truncated: bool = False
    length_control: bool = False
    filters: Filters = DEFAULTS

    @model_validator(mode="after")
    def _has_thresholds(self) -> "Pair":
        if self.strategy == "threshold" and (self.chosen_from is None or self.rejected_to is None):
            raise ValueError("the strategy threshold needs chosen_from and rejected_to")
        return self
