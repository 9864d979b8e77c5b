"""The tables `[rounds]` and `[lineage]`."""

from pydantic import Field

from dpo_data.seams import Settings


class Rounds(Settings):
    """Training again on what the trained model answers. `count`: how many rounds at most; they end by themselves when a round's
    gain over the one before is no longer certain. `reused`: whether a round takes prompts that an earlier round has used, even
    while there are others. `continued`: whether a run starts from the newest model of this recipe that passed its gates, which
    is how a schedule goes on."""

    count: int = Field(1, ge=1)
    reused: bool = True
    continued: bool = False


class Lineage(Settings):
    """Where a round stands; written by the rounds themselves, not by hand. `base` is the model that the first round sampled
    from, `round` counts from 1, and `runs` are the run directories of the rounds before, the oldest first."""

    base: str
    revision: str | None = None
    round: int = Field(1, ge=1)
    runs: list[str] = []
