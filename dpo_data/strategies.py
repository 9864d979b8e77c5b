"""Which answers to one prompt become pairs.

A strategy sees the candidates in one canonical order, so that it cannot know in which order they were sampled. It gives pairs
of positions (chosen, rejected), the most wanted one first. A chosen answer is whole. Scores of a pair differ wherever any two
differ; where none do, one pair of equals stands for the tie, which the filter `tie` then drops with both answers beside it.
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from statistics import fmean, pstdev
from typing import NamedTuple

from dpo_data.config import Pair


class Candidates(NamedTuple):
    """The answers to one prompt that may be in a pair, each text once: highest score first, among equals the greater id first.

    `whole[i]`: the answer was not cut off, so it may be chosen.
    """

    prompt_id: str
    scores: Sequence[float]
    whole: Sequence[bool]


Picks = list[tuple[int, int]]
Strategy = Callable[[Candidates, Pair], Picks]


def best_worst(of: Candidates, settings: Pair) -> Picks:
    """The highest score against the lowest."""
    best = _best(of)
    return [(best, len(of.scores) - 1)] if best is not None else []


def best_vs_mu_2sigma(of: Candidates, settings: Pair) -> Picks:
    """The highest score against the one nearest to the mean less two standard deviations of all: with many answers the very
    lowest is an outlier that teaches little (arXiv 2502.16825)."""
    best = _best(of)
    if best is None:
        return []
    mean = fmean(of.scores)
    target = mean - 2 * pstdev(of.scores, mean)
    return [(best, min(_below(of, best), key=lambda at: (abs(of.scores[at] - target), -at)))]


def best_random(of: Candidates, settings: Pair) -> Picks:
    """The highest score against any lower one, drawn by the prompt's id."""
    best = _best(of)
    if best is None:
        return []
    below = _below(of, best)
    dice = hashlib.blake2b(f"best_random:{of.prompt_id}".encode(), digest_size=8).digest()
    return [(best, below[int.from_bytes(dice, "big") % len(below)])]


def adjacent(of: Candidates, settings: Pair) -> Picks:
    """Each score against the next lower one: the finest distinctions that the judge made. One answer stands for each score."""
    levels = [list(level) for _, level in groupby(range(len(of.scores)), key=of.scores.__getitem__)]
    steps = pairwise(levels)
    picks = [
        (chosen, lower[-1]) for upper, lower in steps if (chosen := next(filter(of.whole.__getitem__, upper), None)) is not None
    ]
    return picks[: settings.max_pairs] or (best_worst(of, settings) if len(levels) == 1 else [])


def every(of: Candidates, settings: Pair) -> Picks:
    """Every answer against every lower one, the widest margins first, up to the cap."""
    picks = [(i, j) for i in range(len(of.scores)) if of.whole[i] for j in range(len(of.scores) - 1, i, -1)]
    picks = [(i, j) for i, j in picks if of.scores[i] > of.scores[j]]
    picks.sort(key=lambda pick: of.scores[pick[1]] - of.scores[pick[0]])
    return picks[: settings.max_pairs] or best_worst(of, settings)


def threshold(of: Candidates, settings: Pair) -> Picks:
    """Every answer that scores `chosen_from` or more against every one that scores `rejected_to` or less, up to the cap."""
    assert settings.chosen_from is not None and settings.rejected_to is not None
    picks = every(of, settings.model_copy(update={"max_pairs": len(of.scores) ** 2}))
    reached = [(i, j) for i, j in picks if of.scores[i] >= settings.chosen_from and of.scores[j] <= settings.rejected_to]
    return reached[: settings.max_pairs]


MANY = 32


def auto(of: Candidates, settings: Pair) -> Picks:
    """best_worst; from 32 candidates on best_vs_mu_2sigma."""
    return (best_worst if len(of.scores) < MANY else best_vs_mu_2sigma)(of, settings)


STRATEGIES: dict[str, Strategy] = {
    "auto": auto,
    "best_worst": best_worst,
    "best_vs_mu_2sigma": best_vs_mu_2sigma,
    "best_random": best_random,
    "adjacent": adjacent,
    "all": every,
    "threshold": threshold,
}


def _best(of: Candidates) -> int | None:
    """The first whole answer that has another one after it; None where there is none."""
    best = of.whole.index(True) if True in of.whole else len(of.whole)
    return best if best < len(of.scores) - 1 else None


def _below(of: Candidates, best: int) -> list[int]:
    """The answers that score less than `best`; the last one, where none does."""
    return [at for at in range(best + 1, len(of.scores)) if of.scores[at] < of.scores[best]] or [len(of.scores) - 1]
