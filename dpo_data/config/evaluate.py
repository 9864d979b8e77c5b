"""The table `[evaluate]`."""

from pydantic import Field

from dpo_data.seams import Settings


class Evaluate(Settings):
    """Base and trained model answer the held-out prompts, and the recipe's judge scores both.

    `thresholds`: a name and a score; reported is the share of answers that reach it, and the first one is the headline. Without
    any, the headline is the share of comparisons won, ties as half.
    """

    n: int = Field(4, ge=1)
    thresholds: dict[str, float] = {}
