"""How sure a judge was of a prompt, read from its ranking and transcript."""

import json
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from dpo_data.judges.members import scores_of
from dpo_data.rows import Ranking, Sample
from dpo_data.templates import said


class Why(IntEnum):
    """Why a judge was not sure, the gravest reason first."""

    ABSTAINED = 0
    TIE = 1
    """Different texts share the best or the worst score."""
    CONTRADICTED = 2
    """A verdict on the best or the worst flipped with the order, or a panel's judges do not agree on one of them."""
    NARROW = 3
    """The best and the worst score are no further apart than the margin."""


class Doubt(NamedTuple):
    """Doubts sort by the gravest reason, then by the smallest `spread` (best minus worst score), then by id: the least sure
    prompt comes first, and no two are equal."""

    why: Why
    spread: float
    prompt_id: str


def doubt(group: Sample, ranking: Ranking, margin: float) -> Doubt | None:
    """What a ranking leaves open of which answer is the best and which the worst; None where the judge was sure."""
    scores = scores_of(ranking)
    spread = max(scores.values(), default=0.0) - min(scores.values(), default=0.0)
    why = _why(group, ranking, scores, spread, margin)
    return None if why is None else Doubt(why, spread, group.prompt_id)


def _why(group: Sample, ranking: Ranking, scores: dict[str, float], spread: float, margin: float) -> Why | None:
    if not scores:
        return Why.ABSTAINED
    texts = {one.completion_id: said(one.text, one.tool_calls) for one in group.completions}
    best, worst = _ends(scores)
    if not spread or any(len({texts[id] for id in end}) > 1 for end in (best, worst)):
        return Why.TIE
    entries = json.loads(ranking.transcript) if ranking.transcript != "[]" else []
    if _flipped(entries, best | worst) or _disagree(entries, texts):
        return Why.CONTRADICTED
    return Why.NARROW if spread <= margin else None


def _ends(scores: Mapping[str, float]) -> tuple[set[str], set[str]]:
    """The answers with the best score, and those with the worst."""
    best, worst = ({id for id, score in scores.items() if score == end(scores.values())} for end in (max, min))
    return best, worst


def _flipped(entries: Iterable[Mapping[str, Any]], ends: set[str]) -> bool:
    """Whether a comparison with one of these answers had another winner in the other order."""
    return any(entry.get("flipped") and ends & {entry["a"], entry["b"]} for entry in entries)


def _disagree(entries: Iterable[Mapping[str, Any]], texts: Mapping[str, str]) -> bool:
    """Whether no one text is the best, or none the worst, for every member of a panel that could decide."""
    told = [
        {id: score for id, score in zip(entry["completion_ids"], entry["scores"], strict=True) if score is not None}
        for entry in entries
        if entry.get("kind") == "member" and entry["abstained"] is None
    ]
    ends = [[{texts[id] for id in end} for end in _ends(scores)] for scores in told if scores]
    return any(not set.intersection(*of_members) for of_members in zip(*ends, strict=True))
