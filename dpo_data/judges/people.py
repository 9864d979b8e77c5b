"""What annotators say of a prompt's answers, and one ranking of it.

Annotators share no scale, so of scores the order alone counts: an annotator's 5 and 1 say no more than another's 4 and 3. Each
entry may be about all answers of the prompt, or about some: what an annotator did not see is no verdict.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from dpo_data.judges.borda import borda
from dpo_data.judges.bradley_terry import bradley_terry
from dpo_data.rows import Ranking, Sample
from dpo_data.seams import abstention

Combine = Literal["borda", "bradley_terry"]

PRIOR = 5.0
"""With how many verdicts that agree an annotator begins, so that the first few answers silence nobody."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of one annotator. `shown`: completion ids in the order shown; `scores` by completion id, higher is better,
    equal is a tie; None where discarded or skipped. `prefilled`: whether it equals the suggestion that was shown, None where
    there was none. `seconds`: how long it took, None where nobody knows. `at`: when it was given, ISO 8601 in UTC."""

    annotator: str
    status: Literal["submitted", "discarded"]
    shown: list[str]
    scores: dict[str, float] | None
    prefilled: bool | None = None
    seconds: float | None = None
    at: str | None = None
    comment: str | None = None


def entry(said: Said) -> dict[str, Any]:
    """The transcript's entry, of kind person."""
    return {"kind": "person", **asdict(said)}


def together(
    group: Sample, name: str, said: list[Said], combine: Combine, weights: Mapping[str, float] | None = None
) -> Ranking:
    """One ranking of what annotators said, with all of it as its transcript; `name` is the judge's.

    `borda`: the mean over annotators of the share of the other answers that each puts below (0–1). `bradley_terry`: strengths
    in log-odds, each two of answers that an annotator ordered as one comparison, which also holds where few of the twos were
    compared. `weights` by annotator, 1 for one who has none. Scores are rounded to nine digits, so that what is equal by
    symmetry is equal. Abstains where nobody answered, or nobody whose word has weight; an answer that none of them judged is
    not judged.
    """
    transcript = json.dumps([entry(one) for one in said], ensure_ascii=False)
    ids = [completion.completion_id for completion in group.completions]
    answered = [(one.annotator, scores) for one in said if len(scores := _scores(one, set(ids))) > 1]
    heard = [(who, scores, weight) for who, scores in answered if (weight := (weights or {}).get(who, 1.0)) > 0]
    if not heard:
        return abstention(group, name, _why(said, {who for who, _ in answered}), transcript)
    points = _borda(heard) if combine == "borda" else _strengths(heard)
    rounded = [round(points[id], 9) + 0.0 if id in points else None for id in ids]
    return Ranking(group.prompt_id, name, ids, rounded, None, transcript)


def weights_of(said_by_prompt: Iterable[list[Said]]) -> dict[str, float]:
    """How much each annotator's word should weigh, 0–1: agreement with the others beyond chance.

    Over all twos of answers that the annotator and another one ordered, each such other counted: those ordered alike less those
    ordered oppositely, as a share of all that not both tie (Wilson's e, 1974; 0 by chance, whatever either one's share of
    ties). Each annotator begins with PRIOR twos ordered alike: so one whom nobody stands beside weighs 1, and the few answers
    of a newcomer do not decide. One who agrees no better than by chance comes to weigh nothing, and nobody weighs less. That
    agreement with others is a worker's quality is the idea of CrowdTruth (Dumitrache et al., arXiv 1808.06080).
    """
    alike: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    people: set[str] = set()
    for said in said_by_prompt:
        people.update(one.annotator for one in said)
        verdicts = _verdicts(said)
        for both in combinations(verdicts, 2):
            of_one, of_other = (verdicts[who] for who in both)
            products = [of_one[two] * of_other[two] for two in of_one.keys() & of_other.keys() if of_one[two] or of_other[two]]
            for who in both:
                alike[who] += sum(products)
                cases[who] += len(products)
    return {who: max(0.0, (alike[who] + PRIOR) / (cases[who] + PRIOR)) for who in sorted(people)}


def _scores(said: Said, ids: set[str] | None = None) -> dict[str, float]:
    """The scores of an answer that was submitted; none of one that was discarded. `ids`: no others'."""
    if said.status != "submitted" or said.scores is None:
        return {}
    return {id: score for id, score in said.scores.items() if ids is None or id in ids}


def _why(said: list[Said], answered: set[str]) -> str:
    if answered:
        return f"{len(answered)} answered, none of whom agrees with the others beyond chance"
    discarded = {one.annotator for one in said if one.status == "discarded"}
    return f"nobody answered, and {len(discarded)} discarded it" if discarded else "nobody answered"


Heard = Iterable[tuple[str, dict[str, float], float]]
"""Annotator, scores by completion id, and the annotator's weight."""


def _borda(heard: Heard) -> dict[str, float]:
    """Weighted means over annotators. Of an annotator's several entries each counts by the number of others in it, so that all
    twos of answers, asked one by one, give what the whole ranking gives."""
    beaten: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    met: Counter[tuple[str, str]] = Counter()
    weights: dict[str, float] = {}
    for who, scores, weight in heard:
        weights[who] = weight
        for id, share in zip(scores, borda(list(scores.values())), strict=True):
            beaten[id, who].append(share * (len(scores) - 1))
            met[id, who] += len(scores) - 1
    votes: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for (id, who), points in beaten.items():
        votes[id].append((math.fsum(points) / met[id, who], weights[who]))
    return {
        id: math.fsum(points * weight for points, weight in of_id) / math.fsum(weight for _, weight in of_id)
        for id, of_id in votes.items()
    }


def _strengths(heard: Heard) -> dict[str, float]:
    at: dict[str, int] = {}
    games, weights = [], []
    for _, scores, weight in heard:
        for id in scores:
            at.setdefault(id, len(at))
        for one, other in combinations(scores, 2):
            games.append((at[one], at[other], (1 + _sign(scores[one], scores[other])) / 2))
            weights.append(weight)
    strengths, _ = bradley_terry(len(at), games, weights=weights)
    return {id: strengths[place] for id, place in at.items()}


def _verdicts(said: list[Said]) -> dict[str, dict[tuple[str, str], int]]:
    """Each annotator's order of each two answers, 1, 0 or −1; of two entries about the same two, the later one's."""
    found: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for one in said:
        scores = _scores(one)
        for two in combinations(sorted(scores), 2):
            found[one.annotator][two] = _sign(scores[two[0]], scores[two[1]])
    return found


def _sign(one: float, other: float) -> int:
    return (one > other) - (one < other)
