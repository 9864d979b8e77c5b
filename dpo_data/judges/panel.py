"""Several judges rank each prompt, and their scores become one.

Judges have scales of their own, so scores are first brought to one scale, within the prompt: its result hangs on no other
prompt, and a run that was killed ends with the same rows as one that was not. A judge that abstained is left out, never taken
for a tie.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_data.errors import RecipeError
from dpo_data.judges.borda import borda
from dpo_data.judges.members import (
    HoldingJudge,
    Judged,
    Member,
    Turns,
    decided,
    deciding,
    inputs_of,
    name_of,
    scores_of,
    turn,
    undecided,
)
from dpo_data.judges.one import MemberSettings
from dpo_data.rows import Ranking, Sample
from dpo_data.seams import Engines, Settings
from dpo_data.spool import spooled


class Panel(Settings):
    """The judges, who take turns, so that memory holds one model at a time. `combine`: an answer's score is the `mean` of the
    judges' scores after each judge's were z-scored, or the mean of their `borda` points. `quorum`: how many judges must have
    judged an answer, and ranked its prompt; by default, more than half of them."""

    type: Literal["panel"] = "panel"
    judges: list[MemberSettings] = Field(min_length=2)
    combine: Literal["mean", "borda"] = "mean"
    quorum: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_vote(self) -> "Panel":
        votes = [deciding(one) for one in self.judges]
        twice = next((one for at, one in enumerate(votes) if one in votes[:at]), None)
        if twice:
            raise RecipeError(
                f"The panel names a judge of type {twice['type']!r} twice", "Name each once: the two would agree."
            )
        if self.quorum and self.quorum > len(votes):
            raise RecipeError(
                f"The panel's quorum is {self.quorum}, and it has {len(votes)} judges",
                f"Make it at most {len(votes)}, or leave it out for more than half of them.",
            )
        return self

    def build(self, sampler: Settings, seed: int, engines: Engines) -> HoldingJudge:
        members: list[Member] = [partial(one.build, sampler, seed, engines) for one in self.judges]
        name = f"panel({', '.join(map(name_of, members))})"
        quorum = self.quorum or len(members) // 2 + 1
        return HoldingJudge(name, partial(vote, name=name, members=members, scale=SCALES[self.combine], quorum=quorum))

    def members(self) -> dict[str, MemberSettings]:
        """The judges that it holds, by their place in its table."""
        return {f"judges.{at}": one for at, one in enumerate(self.judges)}

    def inputs(self) -> dict[str, Any]:
        return inputs_of(self.members())

    def calls(self, n: int) -> int:
        return sum(one.calls(n) for one in self.judges)


Scale = Callable[[list[float]], list[float]]


def z_scores(scores: list[float]) -> list[float]:
    """How many standard deviations (of these scores themselves, not an estimate of others') each is above their mean; 0 for all
    where all are equal. Sums are exact (`fsum`), so that the order of the scores means nothing."""
    _, exponent = math.frexp(max(map(abs, scores), default=0.0))
    scores = [math.ldexp(score, -exponent) for score in scores]  # so that no square overflows
    if len(set(scores)) < 2:
        return [0.0] * len(scores)
    mean = fmean(scores)
    deviation = math.sqrt(fmean((score - mean) ** 2 for score in scores))
    return [(score - mean) / deviation for score in scores]


SCALES: dict[str, Scale] = {"mean": z_scores, "borda": borda}


def vote(groups: Iterable[Sample], name: str, members: list[Member], scale: Scale, quorum: int) -> Turns:
    """The members' rankings put together. All but the last member rank every prompt before the first ranking is given, and what
    one leaves out the next does not see."""
    waiting: Iterator[Judged] = (Judged(group, []) for group in groups)
    for member in members[:-1]:
        waiting = spooled(turn(member, waiting))
    for judged in turn(members[-1], waiting):
        yield together(judged, name, scale, quorum)


def together(judged: Judged, name: str, scale: Scale, quorum: int) -> Ranking:
    """One ranking of several, rounded to nine digits, so that what is equal by symmetry is equal."""
    able = [one for one in judged.rankings if one.abstained is None]
    if len(able) < quorum:
        return undecided(judged, name, f"{len(able)} of {len(judged.rankings)} judges could decide, and the quorum is {quorum}")
    votes: dict[str, list[float]] = defaultdict(list)
    for scores in map(scores_of, able):
        for id, points in zip(scores, scale(list(scores.values())), strict=True):
            votes[id].append(points)
    means = {id: round(fmean(points), 9) + 0.0 for id, points in votes.items() if len(points) >= quorum}
    if len(means) < 2:
        few = f"{len(means)} of {len(judged.group.completions)} answers were judged by {quorum} judges or more"
        return undecided(judged, name, few)
    return decided(judged, name, means)
