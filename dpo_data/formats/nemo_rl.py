"""NeMo-RL's preference format: `context`, and `completions` with their `rank`, 0 the best.

Its DPO and reward-model training takes exactly two completions, and refuses equal ranks: so this is made of pairs. Read in
NVIDIA-NeMo/RL, `data/processors.py` and `data/datasets/preference_datasets/preference_dataset.py`.
"""

from typing import Any

from dpo_data.formats.format import Format, no_template_kwargs, no_tools
from dpo_data.rows import PreferencePair


def unfit(pair: PreferencePair) -> str | None:
    """Why the format cannot hold a pair."""
    return no_tools(pair) or no_template_kwargs(pair)


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as one record."""
    sides = ((pair.chosen, pair.score_chosen), (pair.rejected, pair.score_rejected))
    ranked = [{"rank": rank, "completion": answer, "score": score} for rank, (answer, score) in enumerate(sides)]
    return [{"context": pair.prompt, "completions": ranked}]


NEMO_RL = Format(of=PreferencePair, records=records, unfit=unfit)
