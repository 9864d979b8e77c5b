"""Two judges of a panel or cascade beside each other, over the prompts that both ranked."""

from typing import Any

import numpy as np

from dpo_data.audit.agreement import orders, tau_b_of_orders
from dpo_data.audit.figures import Tally
from dpo_data.audit.schema import Members
from dpo_data.audit.scores import means

Member = dict[str, Any]
"""A transcript's entry of kind member."""


class Beside:
    """One judge beside another."""

    def __init__(self, judges: tuple[str, str]):
        self._judges = judges
        self._agreement, self._opposite, self._contradicted = Tally(), Tally(), Tally()

    def add(self, prompts: list[tuple[Member, Member]]) -> None:
        """Take in what both said of some prompts."""
        told, told_too = orders(padded(prompts))
        self._agreement.add(*means(tau_b_of_orders(told, told_too)))
        self._opposite.add((told * told_too == -1).sum(axis=1), (np.abs(told * told_too) == 1).sum(axis=1))
        self._contradicted.add(*np.array([_contradicted(left, right) for left, right in prompts]).T)

    def members(self) -> Members:
        """The figures."""
        return Members(
            judges=self._judges,
            agreement=self._agreement.figure(expected=None),
            opposite=self._opposite.figure(expected=0.0),
            contradicted=self._contradicted.figure(expected=0.0),
        )


def named(entries: list[dict[str, Any]]) -> list[tuple[str, Member]]:
    """The members of a panel or cascade by name, in their order; a further one of the same name gets a number."""
    found: dict[str, Member] = {}
    for entry in entries:
        if entry.get("kind") == "member":
            name, number = entry["judge"], 2
            while name in found:
                name, number = f"{entry['judge']} ({number})", number + 1
            found[name] = entry
    return list(found.items())


def padded(prompts: list[tuple[Member, Member]]) -> np.ndarray:
    """Both members' scores of the answers that both judged, in the same order, shape (2, prompts, answers), padded with NaN."""
    pairs = [_side_by_side(left, right) for left, right in prompts]
    found = np.full((2, len(pairs), max(len(left) for left, _ in pairs)), np.nan)
    for row, (left, right) in enumerate(pairs):
        found[0, row, : len(left)], found[1, row, : len(right)] = left, right
    return found


def _scores(member: Member) -> dict[str, float]:
    known = zip(member["completion_ids"], member["scores"], strict=True)
    return {id: score for id, score in known if score is not None}


def _side_by_side(left: Member, right: Member) -> tuple[list[float], list[float]]:
    """The scores of the answers that both judged, in the same order."""
    ours, theirs = _scores(left), _scores(right)
    both = [id for id in ours if id in theirs]
    return [ours[id] for id in both], [theirs[id] for id in both]


def _contradicted(left: Member, right: Member) -> tuple[int, int]:
    """Comparisons of the one that the other's list orders the other way, of those that both decide."""
    kinds = [{entry.get("kind") for entry in member["transcript"]} for member in (left, right)]
    if kinds == [{"list"}, {"comparison"}]:
        left, right = right, left
    elif kinds != [{"comparison"}, {"list"}]:
        return 0, 0
    scores = _scores(right)
    signs = [
        (1 if entry["outcome"] == "A" else -1) * (scores[entry["a"]] - scores[entry["b"]])
        for entry in left["transcript"]
        if entry["outcome"] in ("A", "B") and entry["a"] in scores and entry["b"] in scores
    ]
    return sum(sign < 0 for sign in signs), sum(sign != 0 for sign in signs)
