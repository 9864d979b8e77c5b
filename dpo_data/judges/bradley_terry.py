"""From comparisons to scores: the Bradley–Terry model, by Newton's method.

P(i beats j) = σ(sᵢ − sⱼ) (Bradley and Terry 1952). A tie counts half a win for either side. Each answer also has `prior`
comparisons that ended in a tie, spread evenly over all others, so that one that never lost has a finite strength, and answers
that no chain of comparisons connects are comparable.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np

Game = tuple[int, int, float]
"""Two answers and the points of the first: 1 won, ½ tie, 0 lost."""


def bradley_terry(
    n: int, games: Iterable[Game], prior: float = 1.0, weights: Iterable[float] | None = None
) -> tuple[list[float], Any]:
    """The strengths of n answers, in log-odds, with sum 0; and their covariance, an (n, n) array, by the observed information.

    `weights`: as how many each game counts; by default, as one. Strengths are rounded to nine digits, so that what is equal by
    symmetry is equal.
    """
    wins = np.full((n, n), prior / (2 * max(1, n - 1)))
    np.fill_diagonal(wins, 0.0)
    for (a, b, points), weight in zip(games, repeat(1.0) if weights is None else weights, strict=False):
        wins[a, b] += points * weight
        wins[b, a] += (1 - points) * weight
    played, won = wins + wins.T, wins.sum(axis=1)
    strengths = np.zeros(n)
    information = np.zeros((n, n))
    for _ in range(100):
        chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
        weight = played * chance * chance.T
        information = np.diag(weight.sum(axis=1)) - weight
        step = np.linalg.solve(information + 1 / n, won - (played * chance).sum(axis=1))
        strengths = strengths + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-12:
            break
    strengths = np.round(strengths - strengths.mean(), 9) + 0.0
    covariance = np.linalg.inv(information + 1 / n) - 1 / n
    return [float(strength) for strength in strengths], covariance
