"""OpenRLHF's preference format: whole conversations in `chosen` and `rejected`, and the `margin` of its reward model's loss.

It wants `--apply_chat_template` and no `--prompt_key`. Its reader passes no tools to the chat template. Read in openrlhf
0.11.2, `datasets/reward_dataset.py`.
"""

from typing import Any

from dpo_data.formats.format import Format, no_template_kwargs, no_tools
from dpo_data.rows import PreferencePair


def unfit(pair: PreferencePair) -> str | None:
    """Why the format cannot hold a pair."""
    return no_tools(pair) or no_template_kwargs(pair)


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as one record."""
    scores = {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected, "margin": pair.margin}
    return [{"chosen": pair.prompt + pair.chosen, "rejected": pair.prompt + pair.rejected, **scores}]


OPENRLHF = Format(of=PreferencePair, records=records, unfit=unfit)
