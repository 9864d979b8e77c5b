"""The tables `[rounds]` and `[lineage]`."""

from pydantic import Field

from dpo_data.seams import Settings


class Rounds(Settings):
    """Training again on what the trained model answers. `count`: how many rounds at most; they end by themselves when a round's
    gain over the one before is no longer certain. `reused`: whether a round takes prompts that an earlier round has used, even
    while there are others; where it is off, a round takes `prompts` of them, or its share of all. `continued`: whether a run
    starts from the newest model of this recipe that passed its gates, which is how a schedule goes on."""

    count: int = Field(1, ge=1)
    reused: bool = True
    prompts: int | None = Field(None, ge=1)
    continued: bool = False

    @property
    def chained(self) -> bool:
        """Whether a run trains on from another: from its own round before, or from the run before it."""
        return self.count > 1 or self.continued

    def share(self, round: int, prompts: int) -> int:
        """How many of so many prompts a round takes (counted from 1): all rounds together take each once, and begin again."""
        if self.prompts:
            return min(self.prompts, prompts)
        at = (round - 1) % self.count
        return max(1, (at + 1) * prompts // self.count - at * prompts // self.count)


class Lineage(Settings):
    """Where a round stands; written by the rounds themselves, not by hand. `base` is the model that the first round sampled
    from, with its `adapter` if it had one; `round` counts from 1, and `runs` are the run directories of the rounds before, the
    oldest first."""

    base: str
    revision: str | None = None
    adapter: str | None = None
    round: int = Field(1, ge=1)
    runs: list[str] = []
