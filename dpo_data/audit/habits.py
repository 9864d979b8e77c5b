"""What an annotator does whatever the answers say: the place they put first, the time they take, the suggestion they keep."""

from array import array

import numpy as np

from dpo_data.audit.agreeing import Agreeing
from dpo_data.audit.agreement import Array
from dpo_data.audit.figures import Tally
from dpo_data.audit.schema import Annotator

LIMIT = 512
"""Clusters of prompts a figure, for the dozens of figures that each annotator adds: their intervals take no time."""


class Habits:
    """One annotator's tallies."""

    def __init__(self) -> None:
        self.agreeing = Agreeing(LIMIT)
        self._first = Tally(3, limit=LIMIT)
        self._hasty, self._prefilled, self._longer = Tally(limit=LIMIT), Tally(limit=LIMIT), Tally(limit=LIMIT)
        self._seconds = array("f")

    def add(self, first: Array, hasty: Array, prefilled: Array, longer: Array) -> None:
        """What each prompt adds, a part and its cases each, as Heard gives them."""
        for tally, parts in ((self._first, first), (self._hasty, hasty), (self._prefilled, prefilled), (self._longer, longer)):
            tally.add(*parts.T)

    def took(self, seconds: Array) -> None:
        """The seconds of some answers."""
        self._seconds.extend(seconds.tolist())

    def annotator(self, name: str, submitted: int, discarded: int) -> Annotator:
        """The figures."""
        return Annotator(
            name=name,
            submitted=submitted,
            discarded=discarded,
            agreement=self.agreeing.agreement(),
            first_best=self._first.figure(expected=self._first.mean(2)),
            seconds=round(float(np.median(self._seconds)), 3) if self._seconds else None,
            hasty=self._hasty.figure(),
            prefilled=self._prefilled.figure(),
            longer_wins=self._longer.figure(expected=0.5),
        )
