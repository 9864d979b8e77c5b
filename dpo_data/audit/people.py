"""The judge beside people who labelled a slice of the run, and people beside each other."""

import json
import math
from collections import defaultdict
from itertools import combinations
from typing import Any

import numpy as np

from dpo_data.audit.agreeing import Agreeing, all_together, beside, either
from dpo_data.audit.agreement import orders
from dpo_data.audit.schema import Agreement, People
from dpo_data.errors import InputError
from dpo_data.share import find

EXPECTED = 'A line is {"prompt_id": …, "annotator": …, "scores": {completion_id: number, …}}, ids as in 1-sample.'

Labels = dict[str, dict[str, dict[str, float]]]
"""Scores by prompt id, annotator and completion id."""


def read_labels(path: str) -> Labels:
    """What people say. Raises InputError with the file and line of what is no label, or is one for the second time."""
    file = find(path)
    found: Labels = defaultdict(dict)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The labels {path} cannot be read: {error}", "Mend audit.labels, or leave it out.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt, annotator, scores = _label(line, f"{path}:{number}")
        if annotator in found[prompt]:
            raise InputError(f"{path}:{number}: {annotator!r} labels the prompt {prompt} again", "Keep one of the two lines.")
        found[prompt][annotator] = scores
    return found


def _label(line: str, where: str) -> tuple[str, str, dict[str, float]]:
    try:
        label: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}", EXPECTED) from None
    if not isinstance(label, dict) or not all(isinstance(label.get(key), str) for key in ("prompt_id", "annotator")):
        raise InputError(f"{where}: prompt_id or annotator is missing, or is no text", EXPECTED)
    scores = label.get("scores")
    if not isinstance(scores, dict) or not all(_is_number(score) for score in scores.values()):
        raise InputError(f"{where}: scores is missing, or holds what is no number", EXPECTED)
    return label["prompt_id"], label["annotator"], {id: float(score) for id, score in scores.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class BesidePeople:
    """Tallies over the labelled prompts of a run."""

    def __init__(self, path: str):
        self._path, self._labels = path, read_labels(path)
        self._annotators = {annotator for of_prompt in self._labels.values() for annotator in of_prompt}
        self._known = self._unknown_completions = 0
        self._judge, self._people = Agreeing(), Agreeing()

    def add(self, prompt_id: str, completion_ids: list[str], scores: list[float | None]) -> None:
        """What the judge makes of one prompt's answers."""
        labels = self._labels.get(prompt_id)
        if labels is None:
            return
        self._known += 1
        self._unknown_completions += sum(id not in completion_ids for given in labels.values() for id in given)
        judge = orders(np.array([math.nan if score is None else score for score in scores]))
        people = orders(
            np.array([[labels[who].get(id, math.nan) for id in completion_ids] for who in sorted(labels)]).reshape(
                len(labels), len(completion_ids)
            )
        )
        twos = np.array(list(combinations(range(len(people)), 2)), dtype=int).reshape(-1, 2)
        self._judge.add(beside(np.broadcast_to(judge, people.shape), people).sum(axis=0, keepdims=True))
        between = either(beside(people[twos[:, 0]], people[twos[:, 1]]))
        self._people.add(between.sum(axis=0, keepdims=True), all_together(people[None]))

    def people(self) -> People:
        """The figures."""
        return People(
            labels=self._path,
            annotators=len(self._annotators),
            prompts=self._known,
            unknown_prompts=len(self._labels) - self._known,
            unknown_completions=self._unknown_completions,
            judge=self._judge.agreement() or Agreement(tau=None, kappa=None, alpha=None),
            people=self._people.agreement(),
        )
