"""Axolotl's DPO format `chat_template.default`: `messages`, and `chosen` and `rejected` as one message each.

Its reader keeps a turn's role and content alone, and knows four roles. Read in axolotl 0.19,
`prompt_strategies/dpo/chat_template.py`.
"""

from typing import Any

from dpo_data.formats.format import Format, no_template_kwargs, no_tools, odd_role
from dpo_data.rows import PreferencePair


def unfit(pair: PreferencePair) -> str | None:
    """Why the format cannot hold a pair."""
    return no_tools(pair) or no_template_kwargs(pair) or odd_role(pair, "system", "user", "assistant", "tool")


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as one record."""
    scores = {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected}
    return [{"messages": pair.prompt, "chosen": pair.chosen[0], "rejected": pair.rejected[0], **scores}]


AXOLOTL = Format(of=PreferencePair, records=records, unfit=unfit)
"""In axolotl's YAML: `rl: dpo`, and for the dataset `type: chat_template.default`."""
