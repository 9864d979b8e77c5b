"""Annotators beside each other, from what the transcripts say of them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from dpo_data.audit.agreeing import WIDTH, Agreeing, all_together, beside, either, turned
from dpo_data.audit.agreement import Array, kendall_w, orders
from dpo_data.audit.entries import Annotators, Entries, Heard
from dpo_data.audit.figures import Tally, kappa_of, tables
from dpo_data.audit.groups import Groups
from dpo_data.audit.habits import LIMIT, Habits
from dpo_data.audit.schema import Annotation, Two
from dpo_data.audit.scores import means

AT_ONCE = 4096
"""How many prompts are in memory at once."""

MOST_SOURCES = 50
OTHER_SOURCES = "other sources"


class BesideEachOther:
    """Tallies over all that annotators said."""

    def __init__(self, groups: Mapping[str, list[str]]):
        self._people = Annotators()
        self._prompts = self._several = 0
        self._all, self._w = Agreeing(), Tally(3)
        self._sources: dict[str, Agreeing] = {}
        self._habits: defaultdict[int, Habits] = defaultdict(Habits)
        self._twos: defaultdict[tuple[int, int], Tally] = defaultdict(lambda: tables(kappa_of, LIMIT))
        self._groups = Groups(groups)

    def add(
        self, transcripts: Sequence[Entries], completion_ids: Sequence[list[str]], sources: Sequence[str], lengths: Array
    ) -> None:
        """Take in some prompts: transcripts, the answers' ids and, in the same order, lengths, padded with NaN."""
        for start in range(0, len(transcripts), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            heard = self._people.hear(transcripts[some], completion_ids[some], lengths.shape[1])
            if heard.who.size:
                self._add(heard, np.array([_file(source) for source in sources[some]]), lengths[some])

    def annotation(self) -> Annotation | None:
        """The figures; None where nobody answered or discarded anything."""
        names = list(self._people.numbers)
        if not names:
            return None
        by_name = sorted(self._people.numbers.items())
        known = {source: found for source, one in sorted(self._sources.items()) if (found := one.agreement())}
        return Annotation(
            prompts=self._prompts,
            several=self._several,
            agreement=self._all.agreement(),
            w=self._w.figure(expected=self._w.mean(2)),
            annotators=[
                self._habits[at].annotator(name, self._people.submitted[at], self._people.discarded[at]) for name, at in by_name
            ],
            twos=[
                Two(annotators=both, kappa=self._twos[at].figure())
                for both, at in sorted((tuple(sorted((names[one], names[other]))), (one, other)) for one, other in self._twos)
            ],
            sources=known,
            groups=self._groups.groups(name for name, at in by_name if self._people.submitted[at]),
            apart=self._groups.apart(),
        )

    def _add(self, heard: Heard, files: Array, lengths: Array) -> None:
        who, verdicts = heard.who, heard.verdicts
        answered = (who >= 0).sum(axis=1)
        self._prompts += int((answered > 0).sum())
        self._several += int((answered > 1).sum())
        slots = list(combinations(range(who.shape[1]), 2))
        found = [beside(verdicts[:, one], verdicts[:, other]) for one, other in slots]
        twos = np.array(found).reshape(len(slots), len(who), WIDTH).swapaxes(0, 1)
        pooled, each = either(twos).sum(axis=1), np.zeros((*who.shape, WIDTH))
        for at, (one, other) in enumerate(slots):
            each[:, one] += twos[:, at]
            each[:, other] += turned(twos[:, at])
        both = who[:, np.array(slots, dtype=int).reshape(-1, 2)]
        for first, second in np.unique(both[(both >= 0).all(axis=-1)], axis=0):
            self._twos[int(first), int(second)].add(*twos[(both == (first, second)).all(axis=-1), 2:].T)
        together = all_together(verdicts)
        self._all.add(pooled, together)
        for file in np.unique(files):
            here = files == file
            self._source(str(file)).add(pooled[here], together[here])
        ranks = _ranks(verdicts, lengths.shape[1])
        w, defined = means(kendall_w(ranks))
        self._w.add(w, defined, np.where(defined, 1 / np.maximum((~np.isnan(ranks)).any(axis=2).sum(axis=1), 1), 0.0))
        longer = _longer(verdicts, orders(lengths)[:, None])
        self._groups.add(self._people.numbers, who, both, twos, longer)
        for number in np.unique(who[who >= 0]):
            mine = who == number
            habits = self._habits[int(number)]
            habits.agreeing.add(each[mine])
            habits.add(heard.first[mine], heard.hasty[mine], heard.prefilled[mine], longer[mine])
            habits.took(heard.seconds[heard.seconds[:, 0] == number, 1])

    def _source(self, file: str) -> Agreeing:
        name = file if file in self._sources or len(self._sources) < MOST_SOURCES else OTHER_SOURCES
        return self._sources.setdefault(name, Agreeing(LIMIT))


def _file(source: str) -> str:
    return re.sub(r":\d+$", "", source)


def _longer(verdicts: Array, longer: Array) -> Array:
    """How often the longer answer wins, and of how many twos that differ in length, shape (prompts, R, 2)."""
    wins = verdicts * longer
    return np.stack([(wins == 1).sum(axis=-1), (np.abs(wins) == 1).sum(axis=-1)], axis=-1)


def _ranks(verdicts: Array, n: int) -> Array:
    """Each annotator's mid-ranks of the prompt's answers less their mean, (prompts, R, n): half of how many more beat an answer
    than it beats. NaN for who did not compare all that anybody did; what goes in a circle is tied."""
    first, second = np.triu_indices(n, 1)
    side = np.zeros((len(first), n))
    side[np.arange(len(first)), first], side[np.arange(len(first)), second] = 1.0, -1.0
    known = ~np.isnan(verdicts)
    met = known.astype(float) @ np.abs(side)
    there = met.any(axis=1, keepdims=True)
    whole = known.any(axis=2, keepdims=True) & (~there | (met == there.sum(axis=2, keepdims=True) - 1)).all(
        axis=2, keepdims=True
    )
    return np.where(whole & there, -(np.where(known, verdicts, 0.0) @ side) / 2, np.nan)
