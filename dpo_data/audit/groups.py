"""Groups of annotators: how far each agrees within itself and with the others, and how they lean."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from dpo_data.audit.agreeing import Agreeing, either, turned
from dpo_data.audit.agreement import Array
from dpo_data.audit.figures import Tally, differences, ratio
from dpo_data.audit.habits import LIMIT
from dpo_data.audit.schema import Apart, Group


def falls_short(sums: Array) -> Array:
    """By how much the agreement between two groups falls short of the geometric mean of the agreement within each, shape (…, 6)
    to (…): a part and its cases of the one group, of the other, and between them.

    A group that is merely careless agrees less with everybody, itself included, and so falls short of nothing: the correction
    for attenuation (Spearman 1904), as a difference.
    """
    one, other, between = (ratio(sums[..., at : at + 2]) for at in (0, 2, 4))
    found: Array = np.sqrt(np.maximum(one, 0.0) * np.maximum(other, 0.0)) - between
    return found


class Groups:
    """Tallies of each group, and of each two."""

    def __init__(self, groups: Mapping[str, list[str]]):
        self._names = list(groups)
        self._of = {annotator: at for at, members in enumerate(groups.values()) for annotator in members}
        self._agreeing: defaultdict[tuple[int, int], Agreeing] = defaultdict(lambda: Agreeing(LIMIT))
        self._longer: defaultdict[int, Tally] = defaultdict(lambda: Tally(limit=LIMIT))
        self._less: defaultdict[tuple[int, int], Tally] = defaultdict(
            lambda: Tally(6, falls_short, lambda parts: parts[..., 1::2].sum(axis=-1), LIMIT)
        )
        self._leans: defaultdict[tuple[int, int], Tally] = defaultdict(lambda: differences(LIMIT))

    def add(self, people: Iterable[str], who: Array, both: Array, twos: Array, longer: Array) -> None:
        """Some prompts: `people` by number; `who` answered, as in Heard, and how often the `longer` answer wins for each.

        `both`: the numbers of each two of them, (prompts, ·, 2); `twos`: what these add to their agreement, as of `beside`.
        """
        if not self._names:
            return
        group_of = np.array([*(self._of.get(name, -1) for name in people), -1])
        group, of_one, of_other = group_of[who], group_of[both[..., 0]], group_of[both[..., 1]]
        sums = {}
        for first, second in self._pairs(with_itself=True):
            as_they_are = ((of_one == first) & (of_other == second))[..., None]
            turned_round = ((of_one == second) & (of_other == first))[..., None]
            parts = either(twos) * as_they_are if first == second else twos * as_they_are + turned(twos) * turned_round
            sums[first, second] = parts.sum(axis=1)
        leans = [(longer * (group == at)[..., None]).sum(axis=1) for at in range(len(self._names))]
        for pair, parts in sums.items():
            self._agreeing[pair].add(parts)
        for at, lean in enumerate(leans):
            self._longer[at].add(*lean.T)
        for one, other in self._pairs():
            taus = [sums[pair][:, :2] for pair in ((one, one), (other, other), (one, other))]
            self._less[one, other].add(*np.concatenate(taus, axis=1).T)
            self._leans[one, other].add(*leans[one].T, *leans[other].T)

    def groups(self, people: Iterable[str]) -> list[Group]:
        """Each group's figures; `people` are those who answered."""
        answered = [self._of.get(name) for name in people]
        return [
            Group(
                name=name,
                annotators=answered.count(at),
                agreement=self._agreeing[at, at].agreement(),
                longer_wins=self._longer[at].figure(expected=0.5),
            )
            for at, name in enumerate(self._names)
        ]

    def apart(self) -> list[Apart]:
        """The figures of each two groups."""
        return [
            Apart(
                groups=(self._names[one], self._names[other]),
                agreement=self._agreeing[one, other].agreement(),
                less=self._less[one, other].figure(expected=0.0),
                longer_wins=self._leans[one, other].figure(expected=0.0),
            )
            for one, other in self._pairs()
        ]

    def _pairs(self, with_itself: bool = False) -> list[tuple[int, int]]:
        numbers = range(len(self._names))
        return [*combinations(numbers, 2), *((at, at) for at in numbers if with_itself)]
