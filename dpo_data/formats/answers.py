"""The answers that came with a prompt, however a record holds them, and their scores."""

from dataclasses import replace
from typing import Any

from dpo_data.errors import InputError
from dpo_data.formats import hh
from dpo_data.formats.shapes import (
    SCORES,
    SIDE_MODELS,
    SIDE_SCORES,
    UNKNOWN,
    Answer,
    Record,
    Shaped,
    answers_kind,
    is_hh,
    there,
    unpacked,
)
from dpo_data.formats.turns import message, tool_calls
from dpo_data.formats.values import number, short, truth, whole

_TEXTS = ("text", "content", "response", "completion", "value")


def answers(record: Record, found: Shaped, where: str) -> list[Answer]:
    """The answers of a record that is `found` to be of a known shape. Raises InputError."""
    if found.given is not None:
        return [_answer(found.given, where, score=_label_or_score(record, where), model=record.get("model"))]
    match answers_kind(record):
        case None:
            return []
        case "chosen and rejected":
            return _two(record, where)
        case ("completions" | "responses") as name:
            return _many(record, unpacked(record, where)[name], where)
        case name:
            score = _label_or_score(record, where)
            return [
                replace(
                    _answer(record[name], where, score, record.get("model")),
                    n_tokens=whole(record.get("n_tokens")),
                    finish_reason=_text(record.get("finish_reason")),
                )
            ]


def _two(record: Record, where: str) -> list[Answer]:
    scores = [_of_side(record, side, SIDE_SCORES) for side in ("chosen", "rejected")]
    if scores == [None, None]:
        scores = [1.0, 0.0]
    if None in scores:
        raise InputError(f"{where}: one of chosen and rejected has a score, the other has none", "Give both, or neither.")
    return [
        replace(
            _answer(
                _last(record, side),
                where,
                number(score, f"{where}: the score of {side}"),
                _of_side(record, side, SIDE_MODELS),
            ),
            n_tokens=whole(record.get(f"n_tokens_{side}")),
        )
        for side, score in zip(("chosen", "rejected"), scores, strict=True)
    ]


def _last(record: Record, side: str) -> Any:
    """The answer at the end of a whole conversation; an answer alone as it is."""
    value = record[side]
    if isinstance(value, list) and len(value) > 1:
        return value[-1:]
    return hh.turns(value)[-1] if is_hh(record) else value


def _of_side(record: Record, side: str, names: tuple[str, ...]) -> Any:
    """The first of the columns for one side that is there."""
    return next((record[name.format(side)] for name in names if there(record, name.format(side))), None)


def _many(record: Record, given: Any, where: str) -> list[Answer]:
    if not isinstance(given, list):
        raise InputError(f"{where}: the answers are {short(given)}, not a list", "Give a list of texts or objects.")
    lists = unpacked(record, where)
    nothing = [None] * len(given)
    scores, models = lists.get("scores") or nothing, lists.get("models")
    if not isinstance(scores, list) or len(scores) != len(given):
        told = len(scores) if isinstance(scores, list) else short(scores)
        raise InputError(f"{where}: scores has {told} for {len(given)} answers", "Give one for each answer, in their order.")
    if not isinstance(models, list) or len(models) != len(given):
        models = nothing
    return [_one(one, where, score, model) for one, score, model in zip(given, scores, models, strict=True)]


def _one(one: Any, where: str, score: Any, model: Any) -> Answer:
    """One of a record's many answers: a text, a message, or an object that holds one and what is known of it."""
    if not isinstance(one, dict):
        return _answer(one, where, number(score, f"{where}: a score"), model)
    text = next((one[name] for name in _TEXTS if one.get(name) is not None), None)
    calls = one.get("tool_calls")
    own = next((number(one[name], f"{where}: {name}") for name in SCORES if one.get(name) is not None), None)
    if own is None and one.get("rank") is not None:
        rank = number(one["rank"], f"{where}: rank")
        own = None if rank is None else -rank  # rank 0 is the best
    if own is None:
        own = number(score, f"{where}: a score") if score is not None else _annotated(one.get("annotations"), where)
    value = one if "role" in one or "from" in one else "" if text is None and calls else text
    answer = _answer(value, where, own, one.get("model") or model)
    return replace(
        answer,
        n_tokens=whole(one.get("n_tokens")),
        finish_reason=_text(one.get("finish_reason")),
        tool_calls=tool_calls(calls, where) if calls else answer.tool_calls,
    )


def _annotated(annotations: Any, where: str) -> float | None:
    """UltraFeedback's mean rating over its aspects; None where nothing is rated."""
    aspects = annotations.values() if isinstance(annotations, dict) else []
    texts = [aspect.get("Rating") for aspect in aspects if isinstance(aspect, dict)]
    ratings = [number(text, f"{where}: a rating") for text in texts if text not in (None, "N/A")]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def _answer(value: Any, where: str, score: float | None, model: Any) -> Answer:
    """An answer from a text, a message, or a list of one message (also as JSON text, as Arrow's JSON type gives it)."""
    name = model if isinstance(model, str) and model else UNKNOWN
    match value:
        case str():
            return Answer(value, name, score)
        case [dict() | str() as turn] | (dict() as turn):
            found = message(turn, where)
            if found["role"] == "assistant":
                return Answer(found["content"], name, score, tool_calls=found.get("tool_calls"))
            raise InputError(f"{where}: an answer is the {found['role']}'s turn", "Give the assistant's.")
    raise InputError(f"{where}: an answer is {short(value)}, neither a text nor one message", "Give a text or one message.")


def _label_or_score(record: Record, where: str) -> float | None:
    for name in ("label", "kto_tag"):
        if there(record, name):
            return truth(record[name], f"{where}: {name}")
    return next((number(record[name], f"{where}: {name}") for name in SCORES if there(record, name)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
