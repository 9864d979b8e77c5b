"""From an order to points: the Borda count."""

from bisect import bisect_left, bisect_right


def borda(scores: list[float]) -> list[float]:
    """The share of the other answers that each beats, an equal one as half (Borda 1781, with mid-ranks for ties): 1 for the one
    that beats all, 0 for the one that beats none, ½ for one that has no other."""
    ordered, others = sorted(scores), len(scores) - 1
    return [(bisect_left(ordered, one) + bisect_right(ordered, one) - 1) / 2 / others if others else 0.5 for one in scores]
