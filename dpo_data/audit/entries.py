"""What annotators said of some prompts, read from transcripts into arrays of one row a prompt."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_data.audit.agreement import Array, orders

Entries = list[dict[str, Any]]
"""A transcript's entries."""

HASTY = 2.0
"""Seconds in which nobody reads a prompt and two answers: at some four words a second (Brysbaert 2019), eight words."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Some prompts, with a slot for each annotator who answered one, in the order of their numbers, up to R of them.

    `who`: their numbers, shape (prompts, R), −1 for an empty slot. `verdicts`: their `orders`, (prompts, R, twos). `first`,
    `hasty`, `prefilled`, (prompts, R, ·), a part and its cases each: answers that put the first shown best (of several that are
    best, an equal share of each), with what that would be by chance as a third; answers in less than HASTY seconds; answers
    equal to the suggestion. `seconds`: annotator's number and seconds of each answer that has them, (answers, 2).
    """

    who: Array
    verdicts: Array
    first: Array
    hasty: Array
    prefilled: Array
    seconds: Array


class Annotators:
    """Annotators by number, in the order in which they are met, with how often each submitted and discarded."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.submitted: Counter[int] = Counter()
        self.discarded: Counter[int] = Counter()

    def hear(self, transcripts: Sequence[Entries], completion_ids: Sequence[list[str]], width: int) -> Heard:
        """Some prompts' transcripts; the answers' order is that of `completion_ids`, at most `width` of them."""
        cells, told, scores, first, slots = [], [], [], [], []
        for row, (entries, ids) in enumerate(zip(transcripts, completion_ids, strict=True)):
            answers = [(self._number(entry), entry) for entry in people(entries) if self._answers(entry)]
            slot = {number: at for at, number in enumerate(sorted({number for number, _ in answers}))}
            slots.append(list(slot))
            place = dict(zip(ids, range(width), strict=False)) if answers else {}
            for number, entry in answers:
                cells.append((row, slot[number]))
                told.append((entry["seconds"], entry["prefilled"]))
                first.append(place.get(entry["shown"][0], -1))
                answer = [np.nan] * (width + 1)
                for id, score in entry["scores"].items():
                    answer[place.get(id, width)] = score  # one that is not of the prompt goes where nobody looks
                scores.append(answer)
        who = np.full((len(slots), max(map(len, slots), default=0)), -1)
        for row, numbers in enumerate(slots):
            who[row, : len(numbers)] = numbers
        return _heard(who, cells, np.array(scores).reshape(-1, width + 1)[:, :width], first, np.array(told, dtype=float))

    def _number(self, entry: dict[str, Any]) -> int:
        return self.numbers.setdefault(entry["annotator"], len(self.numbers))

    def _answers(self, entry: dict[str, Any]) -> bool:
        """Count an entry; whether it holds an answer."""
        answers = entry["status"] == "submitted" and bool(entry["scores"])
        (self.submitted if answers else self.discarded)[self._number(entry)] += 1
        return answers


def people(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The annotators' entries of a transcript, those of its members among them."""
    for entry in entries:
        if entry.get("kind") == "person":
            yield entry
        elif entry.get("kind") == "member":
            yield from people(entry["transcript"])


def _heard(who: Array, cells: list[tuple[int, int]], scores: Array, first: list[int], told: Array) -> Heard:
    """Answers put where their prompt and annotator are; several of one annotator about one prompt add up."""
    row, slot = np.array(cells, dtype=int).reshape(-1, 2).T
    seconds, prefilled = told.reshape(-1, 2).T

    def added(*columns: Array) -> Array:
        found = np.zeros((*who.shape, len(columns)))
        np.add.at(found, (row, slot), np.column_stack(columns))
        return found

    width = scores.shape[1]
    found = orders(scores)
    verdicts = np.full((*who.shape, found.shape[1]), np.nan)
    answer, two = np.nonzero(~np.isnan(found))
    verdicts[row[answer], slot[answer], two] = found[answer, two]
    judged = (~np.isnan(scores)).sum(axis=1)
    best = scores == np.max(np.where(np.isnan(scores), -np.inf, scores), axis=1, initial=-np.inf, keepdims=True)
    is_first = np.arange(width) == np.array(first, dtype=int)[:, None]
    several = judged > 1
    ahead = np.where(several, (best & is_first).sum(axis=1) / np.maximum(best.sum(axis=1), 1), 0.0)
    return Heard(
        who=who,
        verdicts=verdicts,
        first=added(ahead, several, np.where(several, 1 / np.maximum(judged, 1), 0.0)),
        hasty=added(seconds < HASTY, ~np.isnan(seconds)),
        prefilled=added(prefilled == 1, ~np.isnan(prefilled)),
        seconds=np.column_stack([who[row, slot], seconds])[~np.isnan(seconds)],
    )
