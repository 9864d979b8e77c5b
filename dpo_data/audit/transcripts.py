"""What the transcripts tell: order of showing, marks at the top, the judges of a panel side by side."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from dpo_data.audit.members import Beside, Member, named
from dpo_data.audit.schema import Members, Order, Saturation
from dpo_data.audit.shown import Entries, Shown

SHOWS: dict[str, Any] = {"comparison": "two", "list": "list"}
"""The kinds of entries of a judge that is shown several answers at once."""


class Transcripts:
    """Tallies over all transcripts of one judge, by its members where it has any."""

    def __init__(self, judge: str) -> None:
        self._judge = judge
        self._shown: dict[tuple[str, str], Shown] = {}
        self._beside: dict[tuple[str, str], Beside] = {}
        self._marked = self._at_top = 0

    def add(self, transcripts: Sequence[Entries]) -> None:
        """Take in some prompts' transcripts. Of what annotators say, nothing is told here."""
        shown: dict[tuple[str, str], list[Entries]] = defaultdict(list)
        beside: dict[tuple[str, str], list[tuple[Member, Member]]] = defaultdict(list)
        for entries in transcripts:
            if all(entry.get("kind") == "person" for entry in entries):
                continue
            for judge, other, both in _beside(entries):
                beside[judge, other].append(both)
            for judge, of_judge in _by_judge(self._judge, entries):
                for kind in SHOWS:
                    if of_kind := [entry for entry in of_judge if entry.get("kind") == kind]:
                        shown[judge, kind].append(of_kind)
                self._mark(of_judge)
        for (judge, kind), prompts in shown.items():
            self._shown.setdefault((judge, kind), Shown(judge, SHOWS[kind])).add(prompts)
        for judges, all_both in beside.items():
            self._beside.setdefault(judges, Beside(judges)).add(all_both)

    @property
    def order(self) -> list[Order]:
        """A judge each that is shown several answers."""
        return [shown.order() for shown in self._shown.values()]

    @property
    def members(self) -> list[Members]:
        """Each two judges that ranked the same prompts."""
        return [beside.members() for beside in self._beside.values()]

    @property
    def saturation(self) -> Saturation | None:
        """Answers with the top mark in every aspect; None where nobody gave marks."""
        if not self._marked:
            return None
        return Saturation(mark="top", score=None, share=self._at_top / self._marked, count=self._marked)

    def _mark(self, entries: Entries) -> None:
        for entry in entries:
            if entry.get("kind") == "marks" and entry["marks"]:
                self._marked += 1
                self._at_top += all(mark >= entry["top"] for mark in entry["marks"].values())


def _beside(entries: Entries) -> Iterator[tuple[str, str, tuple[Member, Member]]]:
    """Each two members that ranked, of a judge and of the panels that it holds."""
    members = named(entries)
    for (judge, left), (other, right) in combinations(members, 2):
        if left["abstained"] is None and right["abstained"] is None:
            yield judge, other, (left, right)
    for _, member in members:
        yield from _beside(member["transcript"])


def _by_judge(judge: str, entries: Entries) -> Iterator[tuple[str, Entries]]:
    """The entries of each judge that has no members itself."""
    members = named(entries)
    for name, member in members:
        yield from _by_judge(name, member["transcript"])
    if not members:
        yield judge, entries
