r"""Anthropic's HH: a whole dialogue in one text, `\n\nHuman: … \n\nAssistant: …`, once with the chosen answer and once with the
rejected one. It has no place for a system turn, for tools, nor for a text that holds its own markers; and of a chat template's
variables no need."""

import re
from typing import Any

from dpo_data.formats.format import Format, no_tools, odd_role
from dpo_data.rows import Message, PreferencePair

_MARKER = re.compile(r"\n\n(Human|Assistant): ?")
_NAMES = {"user": "Human", "assistant": "Assistant"}
_ROLES = {name: role for role, name in _NAMES.items()}


def is_dialogue(text: str) -> bool:
    """Whether a text begins as such a dialogue does."""
    return bool(_MARKER.match(text))


def turns(dialogue: str) -> list[Message]:
    """The turns of a dialogue."""
    _, *parts = _MARKER.split(dialogue)
    return [{"role": _ROLES[name], "content": text} for name, text in zip(parts[::2], parts[1::2], strict=True)]


def unfit(pair: PreferencePair) -> str | None:
    """Why the format cannot hold a pair."""
    reason = no_tools(pair) or odd_role(pair, *_NAMES)
    if reason:
        return reason
    if any(turns(_dialogue(pair.prompt + answer)) != pair.prompt + answer for answer in (pair.chosen, pair.rejected)):
        return "a text holds the format's own marker"
    return None


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as one record."""
    return [{"chosen": _dialogue(pair.prompt + pair.chosen), "rejected": _dialogue(pair.prompt + pair.rejected)}]


def _dialogue(messages: list[Message]) -> str:
    return "".join(f"\n\n{_NAMES[message['role']]}: {message['content']}" for message in messages)


HH = Format(of=PreferencePair, records=records, unfit=unfit)
