"""The tables `[rank]` and `[prices]`."""

from pydantic import Field

from dpo_data.judges import JudgeSettings
from dpo_data.seams import Settings


class Rank(Settings):
    """Who ranks. `thinking`: whether judges see what an answer says within `<think>`, which no other table takes away.

    `max_abstained`: the share of prompts that the judge may leave undecided before the run stops. `max_tokens_total` and
    `max_cost`, in the unit of `[prices]`: what this run may spend on its judges before it stops, with what is done kept.
    """

    incidental = frozenset({"max_abstained", "max_tokens_total", "max_cost"})
    judge: JudgeSettings
    thinking: bool = False
    max_abstained: float = Field(0.5, ge=0, le=1)
    max_tokens_total: int | None = Field(None, ge=1)
    max_cost: float | None = Field(None, gt=0)


class Price(Settings):
    """Money for a million tokens, in whatever unit: read, written, and read from the server's cache (None: as `input`)."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
