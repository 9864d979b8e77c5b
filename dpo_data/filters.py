"""What drops a pair. A filter takes a pair and returns the reason to drop it, or None."""

from dpo_data.dedup import normalised
from dpo_data.rows import PreferencePair
from dpo_data.seams import Filter


def tie(pair: PreferencePair) -> str | None:
    """Equal scores say nothing about which answer is better; position must never decide."""
    return None if pair.margin > 0 else f"both score {pair.score_chosen:g}"


def identical(pair: PreferencePair) -> str | None:
    """Chosen and rejected that differ in case or white space alone teach nothing."""
    same = normalised(pair.chosen[-1]["content"]) == normalised(pair.rejected[-1]["content"])
    return "chosen and rejected are the same text" if same else None


def empty(pair: PreferencePair) -> str | None:
    """An empty answer is never chosen."""
    return None if pair.chosen[-1]["content"].strip() else "the chosen answer is empty"


FILTERS: dict[str, Filter] = {"tie": tie, "identical": identical, "empty": empty}
"""The filters in the order in which they are tried; the first one that gives a reason names the drop."""
