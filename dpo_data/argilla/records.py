"""A prompt and its answers as records of Argilla, and back.

A record shows its answers in an order of its own, drawn by the run's seed and the record's id, so that no slot means anything.
The completion ids in that order stand in the record's metadata: by them, and by nothing else, what people say is mapped back.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from typing import Any

from dpo_data.argilla.dataset import MOST_ANSWERS, Dataset, Question
from dpo_data.errors import InputError
from dpo_data.rows import Sample, content_id, request_seed
from dpo_data.templates import said

AGENT = "dpo-data"
"""Who makes the suggestions, as Argilla shows it."""
MOST_TWOS = 4
"""Of how many answers each two are asked at most: of 4, six."""
MOST_MESSAGES, LONGEST_MESSAGE, LONGEST_ROLE = 500, 20_000, 20
"""What a chat field holds (argilla_server/api/schemas/v1/chat.py): messages, and characters of each."""
LONGEST_TERM = 32_766
"""Bytes of UTF-8 in a metadata term: what Elasticsearch indexes, which most servers of Argilla's stand on."""
RATINGS = range(1, 6)
TIE = "tie"
_SURROGATE = re.compile("[\ud800-\udfff]")

Values = Mapping[str, Any]
"""What was answered, or suggested, by the question's name, as Argilla holds it."""


@dataclass(frozen=True, slots=True)
class Record:
    """What people see at once. `id`: the record's external id; `group`: the prompt with the answers shown, in that order."""

    id: str
    group: Sample

    @property
    def order(self) -> list[str]:
        return [one.completion_id for one in self.group.completions]


def records_of(group: Sample, question: Question, seed: int) -> list[Record]:
    """The records that ask about a prompt: one with all its answers, or one for each two of them."""
    answers = sorted(group.completions, key=lambda one: one.completion_id)
    sets = combinations(answers, 2) if question == "pairwise" else [answers]
    records = []
    for shown in sets:
        id = content_id([group.prompt_id, [one.completion_id for one in shown], question])
        order = random.Random(request_seed(seed, id)).sample(shown, len(shown))
        records.append(Record(id, replace(group, completions=order)))
    return records


def in_order(record: Record, order: list[str]) -> Record:
    """The record with its answers in another order; the same one, where those are other answers."""
    answers = {one.completion_id: one for one in record.group.completions}
    if sorted(order) != sorted(answers):
        return record
    return replace(record, group=replace(record.group, completions=[answers[id] for id in order]))


def fields(record: Record, markdown: bool) -> dict[str, Any]:
    """What the record shows. A turn that says nothing is shown as such: Argilla takes no empty one. Where texts are not shown
    as Markdown they are escaped: Argilla's UI takes them for HTML, and would run what is in them."""
    group = record.group

    def shown(text: str, tool_calls: list[dict[str, Any]] | None = None) -> str:
        text = said(text, tool_calls)
        return text if markdown else escape(text, quote=False)

    chat = [
        {"role": turn["role"], "content": shown(turn["content"], turn.get("tool_calls")) or "(empty)"} for turn in group.prompt
    ]
    answers = {f"answer_{at}": shown(one.text, one.tool_calls) for at, one in enumerate(group.completions, 1)}
    return {"prompt": chat, **({"reference": shown(group.reference)} if group.reference is not None else {}), **answers}


def metadata(record: Record) -> dict[str, Any]:
    """`margin`: how far the best score that the answers came with is above the worst, in its unit; it is left out where not all
    have one. `shortest` and `longest`: characters."""
    answers = record.group.completions
    lengths = [len(one.text) for one in answers]
    scores = _scores(record)
    margin = {"margin": float(max(scores) - min(scores))} if scores else {}
    about = {"prompt_id": record.group.prompt_id, "answers": ",".join(record.order), "source": record.group.source}
    models = sorted({one.model for one in answers})
    return {**about, "model": models, **margin, "shortest": min(lengths), "longest": max(lengths)}


def suggestion(record: Record, question: Question) -> dict[str, Any]:
    """The answer that the scores would give, to be filled in beforehand: the best one's rank is 1, equal ones share the better.
    A rating is a score that is one already. Empty where not all answers have a score that will do."""
    scores = _scores(record)
    slots = [f"answer_{at}" for at in range(1, len(scores) + 1)]
    if question == "ranking" and scores:
        ranks = [1 + sum(other > score for other in scores) for score in scores]
        return {"ranking": [{"value": slot, "rank": rank} for slot, rank in zip(slots, ranks, strict=True)]}
    if question == "rating" and all(score in RATINGS for score in scores):
        return {f"rating_{at}": int(score) for at, score in enumerate(scores, 1)}
    if question == "pairwise" and scores:
        return {"better": TIE if scores[0] == scores[1] else slots[scores.index(max(scores))]}
    return {}


def _scores(record: Record) -> list[float]:
    scores = [one.score for one in record.group.completions if one.score is not None and math.isfinite(one.score)]
    return scores if len(scores) == len(record.group.completions) else []


def scores_in(values: Values, order: list[str], question: Question) -> dict[str, float] | None:
    """Scores by completion id, higher is better, of what somebody said of the answers in this order; None where it is not all
    said. A ranking is read by its ranks: Argilla lists its options in their own order, not in that of the ranks."""
    slots = {f"answer_{at}": id for at, id in enumerate(order, 1)}
    if question == "ranking":
        ranks = {option.get("value"): option.get("rank") for option in values.get("ranking") or []}
        scores = {id: _number(ranks.get(slot)) for slot, id in slots.items()}
        told = {id: len(order) + 1 - rank for id, rank in scores.items() if rank is not None}
    elif question == "rating":
        scores = {id: _number(values.get(f"rating_{at}")) for at, id in enumerate(order, 1)}
        told = {id: rating for id, rating in scores.items() if rating is not None}
    else:
        better = values.get("better")
        told = {id: 0.5 if better == TIE else float(better == slot) for slot, id in slots.items() if better in (TIE, *slots)}
    return told if len(told) == len(order) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def body(record: Record, dataset: Dataset, suggest: bool) -> dict[str, Any]:
    """The record as the API takes it."""
    suggested = suggestion(record, dataset.layout.question) if suggest else {}
    suggestions = [
        {"question_id": dataset.questions[name], "value": value, "agent": AGENT, "type": "model"}
        for name, value in suggested.items()
    ]
    told = {"external_id": record.id, "fields": fields(record, dataset.layout.markdown), "metadata": metadata(record)}
    return {**told, "suggestions": suggestions} if suggestions else told


def check(group: Sample, question: Question, markdown: bool) -> None:
    """Raises InputError where Argilla could not take a prompt's records: before anything is sent."""
    n = len(group.completions)
    where = f"Prompt {group.prompt_id} ({group.source})"
    if question == "pairwise" and n > MOST_TWOS:
        raise InputError(
            f"{where} has {n} answers, and each two of {MOST_TWOS} at most are put before people",
            'Ask for a ranking instead: question = "ranking", or give fewer answers.',
        )
    if n > MOST_ANSWERS:
        raise InputError(
            f"{where} has {n} answers, and Argilla shows {MOST_ANSWERS} at most", "Give fewer, or use another judge before it."
        )
    for why in _unfit(group, markdown):
        raise InputError(f"{where} does not fit into Argilla: {why}", "Drop that prompt or answer, or use another judge.")


def _unfit(group: Sample, markdown: bool) -> Iterator[str]:
    """Why a prompt does not fit."""
    (record,) = records_of(group, "ranking", 0)
    shown = fields(record, markdown)
    if len(shown["prompt"]) > MOST_MESSAGES:
        yield f"its conversation has {len(shown['prompt']):,} turns, and {MOST_MESSAGES} are allowed"
    if not shown["prompt"]:
        yield "its conversation is empty"
    for turn in shown["prompt"]:
        if len(turn["content"]) > LONGEST_MESSAGE:
            yield f"a turn has {len(turn['content']):,} characters, and {LONGEST_MESSAGE:,} are allowed"
        if not 0 < len(turn["role"]) <= LONGEST_ROLE:
            yield f"a turn's role is {turn['role'][:40]!r}, and {LONGEST_ROLE} characters are allowed"
    told = metadata(record)
    for name, term in told.items():
        if any(len(one.encode("utf-8", "replace")) > LONGEST_TERM for one in _texts(term)):
            yield f"its {name} is longer than {LONGEST_TERM:,} bytes"
    for text in _texts([shown, told]):
        if "\0" in text:
            yield "a text holds the character NUL, which its database may refuse"
        if _SURROGATE.search(text):
            yield "a text holds half of a surrogate pair, which is no character"


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
