"""A cheap judge first, and a dearer one, or people, for what it leaves open.

`unsure`: the second ranks the prompts of which the first is not sure, and the first's ranking of the others stands. So the
scores of such a run come from two scales: what compares scores of different prompts (a threshold, a least margin) then compares
what is not alike. Best and worst of a prompt do not mind. What the second says of prompts that the first was not sure of tells
nothing of the others: so it may get a random slice of all prompts beside them, the `calibration`.

`extremes`: the second ranks the answers that the first puts at either end, which are the ones that become pairs, and its scores
are the result.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo_data.errors import RecipeError
from dpo_data.judges.doubt import Doubt, doubt
from dpo_data.judges.members import (
    HoldingJudge,
    Judged,
    Member,
    Turns,
    decided,
    deciding,
    inputs_of,
    leaves,
    name_of,
    scores_of,
    turn,
    undecided,
)
from dpo_data.judges.one import MemberSettings
from dpo_data.judges.panel import Panel
from dpo_data.rows import Ranking, Sample, in_share
from dpo_data.seams import Engines, Settings, once
from dpo_data.spool import Spool

HeldSettings = Annotated[MemberSettings | Panel, Field(discriminator="type")]


class Cascade(Settings):
    """The judge that ranks `first`, and the one that ranks `then` what is left open. `route`, what goes on to the second:

    `unsure`, the prompts where the first abstained; where different texts share the best or the worst score; where a verdict on
    one of these flipped with the order, or the judges of a panel do not agree on them; or where no more than `margin` (in the
    first's unit) is between the two. Of these no more than `share` (0–1) of all prompts, or `budget` prompts, the least sure
    first, as `Doubt` sorts them; without either, all. Where the second abstains, so does the cascade: the first was not sure.
    To these comes a random slice of all prompts, `calibration` (0–1), whatever the first thinks. Where the second abstains on
    one of it, the first's ranking stands.
    `extremes`, of each prompt the `ends` answers nearest to the top and as many nearest to the bottom, of equal ones those of
    the least id first. The answers between are not judged. A prompt with no more answers than that goes on whole, and the first
    is not asked.
    """

    type: Literal["cascade"] = "cascade"
    first: HeldSettings
    then: HeldSettings
    route: Literal["unsure", "extremes"] = "unsure"
    margin: float = Field(0.0, ge=0)
    share: float | None = Field(None, ge=0, le=1)
    budget: int | None = Field(None, ge=0)
    calibration: float = Field(0.0, ge=0, le=1)
    ends: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _differ(self) -> "Cascade":
        if deciding(self.first) == deciding(self.then):
            raise RecipeError(
                f"The cascade's second judge is its first, of type {self.first.type!r}, again",
                "Name another judge, or other settings, under then.",
            )
        if any(judge.type == "given" for _, judge in leaves(self.then, "then")):
            raise RecipeError(
                "The judge 'given' comes second in a cascade, where an answer's score is the first judge's",
                "Name 'given' under first, or another judge under then.",
            )
        return self

    @model_validator(mode="after")
    def _chooses(self) -> "Cascade":
        if self.share is not None and self.budget is not None:
            raise RecipeError("The cascade has both a share and a budget", "Keep one of them.")
        if self.route == "extremes" and (self.limited or self.calibration):
            raise RecipeError(
                "share, budget and calibration choose prompts, and the cascade's route 'extremes' takes all",
                'Leave them out, or set route = "unsure".',
            )
        return self

    def build(self, sampler: Settings, seed: int, engines: Engines) -> HoldingJudge:
        first, then = (partial(one.build, sampler, seed, engines) for one in (self.first, self.then))
        name = f"cascade({name_of(first)}, {name_of(then)})"
        take_turns = partial(descend, name=name, first=first, then=then, settings=self, seed=seed, engines=engines)
        return HoldingJudge(name, take_turns)

    def members(self) -> dict[str, MemberSettings | Panel]:
        """The judges that it holds, by their place in its table."""
        return {"first": self.first, "then": self.then}

    def inputs(self) -> dict[str, Any]:
        return inputs_of(self.members())

    def calls(self, n: int) -> int:
        """How often the judges are asked at most: as if no prompt were one of which the first is sure."""
        if self.route == "unsure":
            return self.first.calls(n) + self.then.calls(n)
        return self.then.calls(n) if self.goes_whole(n) else self.first.calls(n) + self.then.calls(2 * self.ends)

    @property
    def limited(self) -> bool:
        """Whether those that go on are chosen among all of which the first is not sure."""
        return self.share is not None or self.budget is not None

    def most(self, prompts: int) -> int:
        """How many of so many prompts may go on because the first is not sure."""
        if self.budget is not None:
            return min(self.budget, prompts)
        return prompts if self.share is None else int(self.share * prompts + 1e-9)  # 0.29 × 100 is 28.999…

    def goes_whole(self, n: int) -> bool:
        """Whether n answers are no more than both ends, so that there is nothing for the first to decide."""
        return self.route == "extremes" and n <= 2 * self.ends


def descend(
    groups: Iterable[Sample], name: str, first: Member, then: Member, settings: Cascade, seed: int, engines: Engines
) -> Turns:
    """What the first is left to decide is given as it comes; all others after, as the second ranks them.

    With a share or a budget, nothing is given before the first has ranked all and the choice is kept, and nothing at all where
    the first owes a ranking: the choice is over all prompts.
    """
    doubts: list[Doubt] = []
    came = ranked = 0
    with closing(Spool[Judged]()) as waiting:

        def to_first() -> Iterator[Judged]:
            nonlocal came
            for group in groups:
                if settings.goes_whole(len(group.completions)):
                    waiting.put(Judged(group, [], (None,)))
                else:
                    came += 1
                    yield Judged(group, [], (None,))

        for judged in map(partial(_routed, settings=settings, seed=seed, doubts=doubts), turn(first, to_first())):
            ranked += 1
            if settings.limited or len(judged.routes) == 2:
                waiting.put(judged)
            else:
                yield _settled(judged, name)
        least_sure: set[str] | None = None

        def goes_on(judged: Judged) -> bool:
            return least_sure is None or judged.routes[-1] == CALIBRATION or judged.group.prompt_id in least_sure

        if settings.limited:
            if ranked < came:
                return
            least_sure = set(once(engines, "cascade", lambda: _least_sure(doubts, settings.most(came))))
            yield from (_settled(judged, name) for judged in waiting if not goes_on(judged))
        for judged in turn(then, filter(goes_on, iter(waiting)), partial(_shown, settings=settings)):
            yield _settled(judged, name)


UNSURE, CALIBRATION = "unsure", "calibration"
"""Why the second judge is asked of a whole prompt."""


def _routed(judged: Judged, settings: Cascade, seed: int, doubts: list[Doubt]) -> Judged:
    """A prompt with the reason to send it on, as a second route, where there is one. Doubts are noted."""
    group, ranking = judged.group, judged.rankings[0]
    if settings.route == "extremes":
        return replace(judged, routes=(None, None)) if scores_of(ranking) else judged
    if in_share(group.prompt_id, settings.calibration, f"calibration:{seed}"):
        return replace(judged, routes=(None, CALIBRATION))
    found = doubt(group, ranking, settings.margin)
    if found is None:
        return judged
    doubts.append(found)
    return replace(judged, routes=(None, UNSURE))


def _least_sure(doubts: Iterable[Doubt], most: int) -> list[str]:
    return [found.prompt_id for found in sorted(doubts)[:most]]


def _shown(judged: Judged, settings: Cascade) -> Sample:
    """What the second sees: nothing of why it is asked, and each answer with the first's score."""
    if not judged.rankings:
        return judged.group
    scores = scores_of(judged.rankings[0])
    scored = replace(
        judged.group,
        completions=[replace(one, score=scores.get(one.completion_id)) for one in judged.group.completions],
    )
    return extremes(scored, scores, settings.ends) if settings.route == "extremes" else scored


def extremes(group: Sample, scores: Mapping[str, float], ends: int) -> Sample:
    """The prompt with the answers at both ends alone."""
    order = sorted(scores, key=lambda id: (-scores[id], id))
    kept = {*order[:ends], *order[-ends:]}
    return replace(group, completions=[one for one in group.completions if one.completion_id in kept])


def _settled(judged: Judged, name: str) -> Ranking:
    """The ranking by the one who judged last; by the first, where the second could not decide on one of the calibration."""
    last = judged.rankings[-1]
    if last.abstained and judged.routes[-1] == CALIBRATION:
        last = judged.rankings[0]
    return undecided(judged, name) if last.abstained else decided(judged, name, scores_of(last))
