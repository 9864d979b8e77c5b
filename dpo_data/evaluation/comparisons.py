"""The trained model's answers beside those of another side, prompt by prompt."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from dpo_data.audit.figures import ratio
from dpo_data.evaluation.figures import estimate
from dpo_data.evaluation.schema import Gain
from dpo_data.length_control import fit
from dpo_data.rows import Ranking, Sample
from dpo_data.templates import without_thinking


class Judgement(NamedTuple):
    """An answer's score, and its length in characters, without thinking."""

    score: float
    length: int


class Comparison(NamedTuple):
    """Whether ours wins (1, 0, or ½ for a tie), and how many characters longer it is."""

    won: float
    longer: int


Judgements = dict[str, list[Judgement]]
"""By prompt, in the order of the ids: those of its answers that have a score."""


def judgements(samples: Iterable[Sample], rankings: Iterable[Ranking]) -> Judgements:
    """What the judge made of one side's answers. Every prompt is there, also one without a score."""
    score_of = {
        id: score
        for row in rankings
        if not row.abstained
        for id, score in zip(row.completion_ids, row.scores, strict=True)
        if score is not None
    }
    return {
        row.prompt_id: [
            Judgement(score_of[one.completion_id], len(without_thinking(one.text)))
            for one in row.completions
            if one.completion_id in score_of
        ]
        for row in sorted(samples, key=lambda row: row.prompt_id)
    }


def compare(ours: Judgements, theirs: Judgements) -> list[list[Comparison]]:
    """Each of our answers with each of theirs, by prompt. Prompts in which a side has no score do not count."""
    return [
        [Comparison((a.score > b.score) + (a.score == b.score) / 2, a.length - b.length) for a in mine for b in theirs[id]]
        for id, mine in ours.items()
        if mine and theirs[id]
    ]


def win_rate(comparisons: Sequence[Sequence[Comparison]]) -> float:
    """The share of comparisons won, averaged over prompts. ½ where there is none."""
    return fmean(fmean(one.won for one in of_prompt) for of_prompt in comparisons) if comparisons else 0.5


def win_rate_length_controlled(comparisons: Sequence[Sequence[Comparison]]) -> float | None:
    """As `win_rate`, if all answers were equally long. None where the lengths cannot tell."""
    wins = [one.won for of_prompt in comparisons for one in of_prompt]
    differences = [one.longer for of_prompt in comparisons for one in of_prompt]
    weights = [1 / len(of_prompt) for of_prompt in comparisons for _ in of_prompt]
    found = fit(np.array(wins), np.array(differences), np.array(weights))
    return found.win_rate if found else None


def gain(comparisons: Sequence[Sequence[Comparison]]) -> Gain | None:
    """The win rate less one half, with its interval. None where nothing was compared."""
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


def means(of: Mapping[str, Sequence[Judgement]]) -> dict[str, float]:
    """The mean score of each prompt that has one."""
    return {id: fmean(one.score for one in judged) for id, judged in of.items() if judged}
