"""LLaMA-Factory's ranking format (ShareGPT): `conversations`, `chosen`, `rejected`, `tools` as JSON text; dataset_info.json.

Its reader takes a system prompt from the first turn, or else from a column in which an empty one is the same as none: so it
goes into the first turn. It wants turns in strict alternation, calls alone in a turn, and skips what is otherwise: that is left
out here. Read in llamafactory 0.9.5, `data/converter.py`.
"""

from pathlib import Path
from typing import Any

from dpo_data.formats.format import Format, no_template_kwargs, odd_role
from dpo_data.formats.turns import dumped, sharegpt
from dpo_data.rows import Message, PreferencePair


def unfit(pair: PreferencePair) -> str | None:
    """Why the format cannot hold a pair."""
    odd = no_template_kwargs(pair) or odd_role(pair, "system", "user", "assistant", "tool")
    if odd:
        return odd
    turns = pair.prompt[1:] if pair.prompt[0]["role"] == "system" else pair.prompt
    sides = [turn["role"] == "assistant" if turn["role"] != "system" else None for turn in turns]
    if sides != [bool(at % 2) for at in range(len(turns))] or len(turns) % 2 == 0:
        return "the format wants user and assistant to take turns"
    if any(_both(turn) for turn in [*turns, *pair.chosen, *pair.rejected]):
        return "a turn has a text beside its tool calls, and the format has place for one of them"
    return None


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as one record."""
    record: dict[str, Any] = {
        "conversations": [sharegpt(turn) for turn in pair.prompt],
        "chosen": sharegpt(pair.chosen[0]),
        "rejected": sharegpt(pair.rejected[0]),
        "tools": dumped(pair.tools) if pair.tools else "",
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }
    return [record]


def _both(turn: Message) -> bool:
    return bool(turn.get("tool_calls") and turn["content"])


def dataset_info(files: list[str]) -> dict[str, Any]:
    """What LLaMA-Factory wants to know of each file, under the file's stem as the dataset's name."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "tools": "tools"}
    facts = {"formatting": "sharegpt", "ranking": True, "columns": columns}
    return {"dataset_info.json": {Path(file).stem: {"file_name": file, **facts} for file in files}}


LLAMAFACTORY = Format(of=PreferencePair, records=records, unfit=unfit, beside=dataset_info)
