"""The trained model's answers beside those of another side, prompt by prompt.

An answer that is itself the reason why it has no score loses against every answer that has one: the ranking's transcript holds
an entry of kind `error` for it, also a member's, as where a rule returned None for an empty answer. So does the answer that a
model owes to a prompt at which it failed. What the judge left out for a reason of its own counts neither way: a prompt without
any score, where it abstained as a whole; answers whose comparisons or marks could not be read; those between a cascade's best
and worst.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import copysign, inf
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dpo_data.audit.figures import ratio
from dpo_data.evaluation.figures import estimate
from dpo_data.evaluation.schema import Gain
from dpo_data.length_control import fit
from dpo_data.rows import Ranking, Sample
from dpo_data.templates import without_thinking


class Judgement(NamedTuple):
    """An answer's score, None for one that could not be scored; and its length in characters, without thinking."""

    score: float | None
    length: int


class Comparison(NamedTuple):
    """Whether ours wins (1, 0, or ½ for a tie), and how many characters longer it is."""

    won: float
    longer: int


Judgements = dict[str, list[Judgement]]
"""By prompt, in the order of the ids: those of its answers that have a score, or could not be scored."""

Scores = Mapping[str, float | None]
"""By completion id: an answer's score, None where it could not be scored. One not judged for another reason is not in it."""


def judgements(samples: Iterable[Sample], rankings: Iterable[Ranking], n: int = 1) -> Judgements:
    """What the judge made of one side's answers. Every prompt is there, also one without a judgement. `n`: how many answers a
    model owes to a prompt at which it failed."""
    known = {row.prompt_id: scores(row) for row in rankings}
    ordered = sorted(samples, key=lambda row: row.prompt_id)
    return {row.prompt_id: judged(row, known.get(row.prompt_id, {}), n) for row in ordered}


def judged(row: Sample, known: Scores, n: int = 1) -> list[Judgement]:
    """The same of one prompt, from the `scores` of its ranking."""
    owed = [Judgement(None, 0)] * n if row.error and known else []
    answers = [one for one in row.completions if one.completion_id in known]
    return owed + [Judgement(known[one.completion_id], len(without_thinking(one.text))) for one in answers]


def scores(row: Ranking) -> Scores:
    """What a ranking says of a prompt's answers; empty where it holds no score. A judge that could score one answer alone may
    abstain and keep that score, which counts."""
    given = sum(score is not None for score in row.scores)
    if not given or (row.abstained and given > 1):
        return {}
    unable = set(_unable(json.loads(row.transcript)))
    both = zip(row.completion_ids, row.scores, strict=True)
    return {id: score for id, score in both if score is not None or id in unable}


def _unable(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The ids of the answers that a transcript, or that of a member, says could not be scored."""
    for entry in entries:
        if entry.get("kind") == "error":
            yield entry["completion_id"]
        elif entry.get("kind") == "member":
            yield from _unable(entry["transcript"])


def compare(ours: Judgements, theirs: Judgements) -> list[list[Comparison]]:
    """Each of our answers with each of theirs, by prompt, but for two of which neither could be scored. Prompts in which a side
    has no judgement are left out; one in which neither has a score is there without a comparison."""
    return [
        [
            Comparison(_won(a.score, b.score), a.length - b.length)
            for a in mine
            for b in theirs[id]
            if a.score is not None or b.score is not None
        ]
        for id, mine in ours.items()
        if mine and theirs[id]
    ]


def _won(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return float(theirs is None)
    return (ours > theirs) + (ours == theirs) / 2


def win_rate(comparisons: Sequence[Sequence[Comparison]]) -> float:
    """The share of comparisons won, averaged over prompts. ½ where there is none."""
    shares = [fmean(one.won for one in of_prompt) for of_prompt in comparisons if of_prompt]
    return fmean(shares) if shares else 0.5


def win_rate_length_controlled(comparisons: Sequence[Sequence[Comparison]]) -> float | None:
    """As `win_rate`, if all answers were equally long. None where the lengths cannot tell."""
    wins = [one.won for of_prompt in comparisons for one in of_prompt]
    differences = [one.longer for of_prompt in comparisons for one in of_prompt]
    weights = [1 / len(of_prompt) for of_prompt in comparisons for _ in of_prompt]
    found = fit(np.array(wins), np.array(differences), np.array(weights))
    return found.win_rate if found else None


def gain(comparisons: Sequence[Sequence[Comparison]]) -> Gain | None:
    """The win rate less one half, with its interval. None where nothing was compared."""
    comparisons = [of_prompt for of_prompt in comparisons if of_prompt]
    parts = np.array([(fmean(one.won for one in of_prompt) - 0.5, 1.0) for of_prompt in comparisons]).reshape(-1, 2)
    found = estimate(parts, ratio)
    if found is None:
        return None
    return Gain(
        **found.model_dump(),
        tied=fmean(fmean(one.won == 0.5 for one in of_prompt) for of_prompt in comparisons),
        prompts=len(comparisons),
        comparisons=sum(map(len, comparisons)),
    )


def change(before: Sequence[Judgement], after: Sequence[Judgement]) -> float | None:
    """By how much the mean score of a prompt's answers rose. Where some could not be scored, 0 for as many comparisons won as
    lost, else ±∞. None where nothing can be compared."""
    scores = [[one.score for one in of if one.score is not None] for of in (before, after)]
    if before and after and [len(of) for of in scores] == [len(before), len(after)]:
        return fmean(scores[1]) - fmean(scores[0])
    won = [one.won - 0.5 for of_prompt in compare({"": [*after]}, {"": [*before]}) for one in of_prompt]
    return (copysign(inf, sum(won)) if sum(won) else 0.0) if won else None
