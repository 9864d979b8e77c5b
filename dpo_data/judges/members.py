"""How a judge holds judges. They take turns: one is built, ranks every prompt and is closed before the next is built, so that
memory holds one model at a time. What waits for the next one is on the disk."""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from dpo_data.rows import Ranking, Sample
from dpo_data.seams import Judge, Settings, abstention

log = logging.getLogger(__name__)

Member = Callable[[], Judge]
"""Builds a judge for its turn."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt's answers, and what the members so far have made of them, in the order of their turns. `routes`: of a cascade,
    why each of these was asked."""

    group: Sample
    rankings: list[Ranking]
    routes: tuple[str | None, ...] = ()


Turns = Generator[Ranking, None, None]


@dataclass
class HoldingJudge:
    """A judge that holds judges. `take_turns` has them rank all groups. `close` ends the turn that is under way."""

    name: str
    take_turns: Callable[[Iterable[Sample]], Turns]
    _under_way: list[Turns] = field(default_factory=list)

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        self._under_way.append(self.take_turns(groups))
        return self._under_way[-1]

    def close(self) -> None:
        for turns in self._under_way:
            turns.close()


def turn(
    member: Member, waiting: Iterator[Judged], show: Callable[[Judged], Sample] = lambda judged: judged.group
) -> Iterator[Judged]:
    """One member's turn: all that waits as one stream, each with the member's ranking added, in any order.

    The member is built with the first prompt, and not at all where none waits. `show` says what it sees of one. What it gives
    no ranking for is left out.
    """
    first = next(waiting, None)
    if first is None:
        return
    asked: dict[str, Judged] = {}

    def groups() -> Iterator[Sample]:
        for judged in chain([first], waiting):
            asked[judged.group.prompt_id] = judged
            yield show(judged)

    with closing(member()) as judge:
        log.info("%s: its turn begins", judge.name)
        done = 0
        for ranking in judge.rank(groups()):
            judged = asked.pop(ranking.prompt_id)
            done += 1
            yield replace(judged, rankings=[*judged.rankings, ranking])
        log.info("%s: has ranked %d prompts, %d await an answer", judge.name, done, len(asked))


def name_of(member: Member) -> str:
    """The name that a member will have in its rankings. To build a judge starts no engine."""
    with closing(member()) as judge:
        return judge.name


def deciding(judge: Settings) -> dict[str, Any]:
    """A judge's settings, all but what decides no row: two judges for which they are equal say the same."""
    return judge.deciding(*type(judge).model_fields)


def leaves(judge: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The settings of the judges that hold no judge, at any depth of these settings, each with its place in the recipe."""
    members: Mapping[str, Any] = getattr(judge, "members", dict)()
    if not members:
        yield place, judge
    for at, one in members.items():
        yield from leaves(one, f"{place}.{at}")


def inputs_of(members: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of members' settings, by the member's place in its holder's table: `judges.0.template`."""
    return {f"{place}.{name}": value for place, one in members.items() for name, value in one.inputs().items()}


def decided(judged: Judged, name: str, scores: Mapping[str, float | None]) -> Ranking:
    """The ranking of a judge that holds judges, from scores by completion id; what has none is not judged."""
    ids = [completion.completion_id for completion in judged.group.completions]
    return Ranking(judged.group.prompt_id, name, ids, [scores.get(id) for id in ids], None, _transcript(judged))


def undecided(judged: Judged, name: str, why: str = "") -> Ranking:
    """The abstention of a judge that holds judges: why, and which members could not decide for what reason."""
    unable = [f"{one.judge} could not decide: {one.abstained}" for one in judged.rankings if one.abstained]
    return abstention(judged.group, name, "; ".join([*([why] if why else []), *unable]), _transcript(judged))


def scores_of(ranking: Ranking) -> dict[str, float]:
    """The scores of the answers that were judged, by completion id; none where the judge abstained."""
    if ranking.abstained:
        return {}
    both = zip(ranking.completion_ids, ranking.scores, strict=True)
    return {id: score for id, score in both if score is not None}


def _transcript(judged: Judged) -> str:
    """What each member made of the prompt, with what it was asked and answered."""
    members: list[dict[str, Any]] = [
        {
            "kind": "member",
            "judge": one.judge,
            "completion_ids": one.completion_ids,
            "scores": one.scores,
            "abstained": one.abstained,
            "transcript": json.loads(one.transcript),
        }
        for one in judged.rankings
    ]
    for member, route in zip(members, judged.routes, strict=False):
        member["route"] = route
    return json.dumps(members, ensure_ascii=False)
