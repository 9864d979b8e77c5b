"""What a record of any known shape holds: a prompt, and the answers that came with it. The shape is told by the columns."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dpo_data.errors import InputError
from dpo_data.formats import hh
from dpo_data.formats.turns import messages, template_kwargs, tools
from dpo_data.formats.values import parsed, short
from dpo_data.rows import Message, TemplateKwargs, Tools

Record = dict[str, Any]


EXPECTED = (
    "Give `prompt` (text or messages), `messages`, `conversations`, `turns`, or `instruction` with an optional `input`; "
    "none may be empty."
)
UNKNOWN = "unknown"
"""The model of an answer of which no file tells it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that came with its prompt. `model` is `unknown` where the file does not tell; `score` (higher is better) is
    None where nobody scored it; `tool_calls` as in a Message."""

    text: str
    model: str
    score: float | None
    finish_reason: str | None = None
    n_tokens: int | None = None
    tool_calls: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Shaped:
    """A record, understood. `given` is the last turn of a conversation that ends with the assistant's: its answer, where the
    record has no other."""

    shape: str
    messages: list[Message]
    tools: Tools | None
    chat_template_kwargs: TemplateKwargs | None
    given: Message | None = None


_LISTS = frozenset({"messages", "conversations", "context", "turns", "history", "completions", "responses", "scores", "models"})
FLAT = ("completion", "response", "answer", "output")
SCORES = ("score", "rating", "overall_score", "fine-grained_score")
SIDE_SCORES = ("score_{}", "{}_score", "{}-rating", "{}_rating")
SIDE_MODELS = ("model_{}", "{}_model", "{}-model")
_CONVERSATIONS = ("prompt", "messages", "conversations", "context", "turns", "question", "instruction")
COLUMNS = frozenset((*_LISTS, *FLAT, *SCORES, *_CONVERSATIONS, "input", "system", "tools", "source")) | {
    "chat_template_kwargs",
    *("chosen", "rejected", "label", "kto_tag", "model", "finish_reason", "n_tokens"),
    *(name.format(side) for side in ("chosen", "rejected") for name in (*SIDE_SCORES, *SIDE_MODELS, "n_tokens_{}")),
}
"""Every column that is ever looked at."""


def shaped(record: Record, where: str) -> Shaped:
    """A record of any known shape as a conversation that awaits an answer. Raises InputError, naming the columns found."""
    found = _conversation(record, where)
    turns, given = found.messages, found.given
    kind = answers_kind(record)
    if kind is None and len(turns) > 1 and turns[-1]["role"] == "assistant":
        turns, given, kind = turns[:-1], turns[-1], "the last assistant turn"
    if turns[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: the last turn is the {turns[-1]['role']}'s", "End each prompt with a user's turn.")
    if turns[-1]["role"] == "user" and not turns[-1]["content"].strip():
        raise InputError(f"{where}: the last turn is empty", "Give it a text, or remove the record.")
    shape = f"{found.shape}, answered by {kind}" if kind else found.shape
    return Shaped(shape, turns, found.tools, found.chat_template_kwargs, given)


def parted(record: Record, reference: str | None, where: str) -> tuple[Record, str | None]:
    """A record without the column named `reference`; and the reference answer, that column's text, or its number as text; None
    where it has none. Raises InputError."""
    if reference is None or reference not in record:
        return record, None
    rest = {name: value for name, value in record.items() if name != reference}
    match record[reference]:
        case None:
            return rest, None
        case str(text):
            return rest, text if text.strip() else None
        case (int() | float() | Decimal()) as number if not isinstance(number, bool) and _is_finite(number):
            return rest, str(number)
    raise InputError(
        f"{where}: the reference answer in {reference!r} is {short(record[reference])}, neither a text nor a number",
        "Write it as text.",
    )


def _is_finite(number: float | Decimal) -> bool:
    return isinstance(number, int) or math.isfinite(number)  # a long whole number does not fit into a float


def no_reference(where: str, reference: str, columns: Iterable[str]) -> InputError:
    """The error of prompts of which none has the column that is to hold the reference answers."""
    return InputError(
        f"{where}: no reference answer in a column {reference!r}",
        f"Set prompts.reference to one of the columns found: {short(', '.join(map(str, columns))) or '(none)'}.",
    )


def answers_kind(record: Record) -> str | None:
    """Which columns hold a record's answers, in words; None where none do."""
    if there(record, "chosen") and there(record, "rejected"):
        return "chosen and rejected"
    for name in ("completions", "responses"):
        if isinstance(record.get(name), list | str):
            return name
    for name in FLAT:
        if there(record, name) and record[name] != "":
            return name
    return None


def user_turns(record: Record, where: str) -> list[str]:
    """The texts of all that a user says in a record of any known shape, all of FastChat's `turns` among them."""
    match unpacked(record, where):
        case {"turns": list(turns)} if turns and all(isinstance(turn, str) for turn in turns):
            return list(turns)
    return [turn["content"] for turn in _conversation(record, where).messages if turn["role"] == "user"]


def _conversation(record: Record, where: str) -> Shaped:
    """All turns of a record, its tools, and its chat template's variables."""
    record = unpacked(record, where)
    shape, turns = _turns(record, where)
    system = record.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    kwargs = template_kwargs(record.get("chat_template_kwargs"), f"{where}: chat_template_kwargs")
    return Shaped(shape, turns, tools(record.get("tools"), where), kwargs)


def _turns(record: Record, where: str) -> tuple[str, list[Message]]:
    match record:
        case {"chosen": list([_, _, *_]) as chosen, "rejected": list([_, _, *_]) as rejected}:
            return "whole conversations", _shared(
                messages(chosen, where), messages(rejected, where), record.get("prompt"), where
            )
        case {"chosen": str(chosen), "rejected": str(rejected)} if is_hh(record):
            return "HH dialogues", _shared(hh.turns(chosen), hh.turns(rejected), None, where)
        case {"messages": list(turns)} if turns:
            return "messages", messages(turns, where)
        case {"conversations": list(turns)} if turns:
            return "ShareGPT conversations", messages(turns, where)
        case {"prompt": list(turns)} if turns:
            return "prompt messages", messages(turns, where)
        case {"context": list(turns)} if turns:
            return "context messages", messages(turns, where)
        case {"turns": list(turns)} if turns and isinstance(turns[0], str):
            return "FastChat turns, the first one", [{"role": "user", "content": turns[0]}]
        case {"turns": list(turns)} if turns:
            return "turns", messages(turns, where)
        case {"prompt": str(text)} if text.strip():
            return "prompt", [{"role": "user", "content": text}]
        case {"question": str(text)} if text.strip():
            return "question", [{"role": "user", "content": text}]
        case {"instruction": str(text), "input": str(given)} if text.strip() and given.strip():
            return "Alpaca instruction", [*_history(record, where), {"role": "user", "content": f"{text}\n\n{given}"}]
        case {"instruction": str(text)} if text.strip() and not str(record.get("input") or "").strip():
            return "Alpaca instruction", [*_history(record, where), {"role": "user", "content": text}]
    raise InputError(
        f"{where}: no prompt in the columns {short(', '.join(map(str, record))) or '(none)'}",
        EXPECTED,
    )


def _shared(chosen: list[Message], rejected: list[Message], prompt: Any, where: str) -> list[Message]:
    """The conversation that both sides answer with their last turn."""
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise InputError(
            f"{where}: chosen and rejected answer different conversations", "Make all but their last turns the same."
        )
    if isinstance(prompt, list) and prompt and messages(prompt, where) != chosen[:-1]:
        raise InputError(f"{where}: an answer has more than one turn", "Give one, and the turns before it as the prompt.")
    return chosen[:-1]


def _history(record: Record, where: str) -> list[Message]:
    turns: list[Message] = []
    history = record.get("history") or []
    for round in history if isinstance(history, list) else [history]:
        match round:
            case [str(asked), str(answered)]:
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            case _:
                raise InputError(f"{where}: history holds {short(round)}, not [instruction, answer]", "Mend it.")
    return turns


def unpacked(record: Record, where: str) -> Record:
    """The record with lists for lists that stand there as JSON text, as they must in CSV; what is empty is not there."""
    packed = {
        name: parsed(value, f"{where}: {name}")
        for name, value in record.items()
        if name in _LISTS and isinstance(value, str) and value.lstrip().startswith("[")
    }
    return {**record, **packed} if packed else record


def is_hh(record: Record) -> bool:
    """Whether both sides are whole dialogues of Anthropic's HH, and nothing else is the prompt."""
    sides = (record.get("chosen"), record.get("rejected"))
    whole = all(isinstance(side, str) and hh.is_dialogue(side) for side in sides)
    return whole and not any(there(record, name) for name in _CONVERSATIONS)


def there(record: Record, name: str) -> bool:
    """Whether a column is there, and not null."""
    return record.get(name) is not None
