"""What counts as the same text, and which texts repeat, wholly or nearly."""

from collections.abc import Iterable, Iterator

from dpo_data.dedup.contamination import Contamination
from dpo_data.dedup.exact import keys, repeats
from dpo_data.dedup.jaccard import repetition, similarity, within
from dpo_data.dedup.near import Twins, near_duplicates
from dpo_data.dedup.text import normalised
from dpo_data.rows import DroppedPrompt, Prompt

__all__ = [
    "Contamination",
    "Twins",
    "distinct",
    "keys",
    "near_duplicates",
    "normalised",
    "repeats",
    "repetition",
    "similarity",
    "within",
]


def distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt | DroppedPrompt]:
    """Each prompt once; one with the messages of an earlier one comes back as dropped. It keeps 75 bytes a prompt."""
    seen: set[int] = set()
    for prompt in prompts:
        key = int(prompt.prompt_id[:16], 16)
        if key in seen:
            yield DroppedPrompt(prompt.prompt_id, prompt.prompt, prompt.source, "duplicate", "the same messages came before")
        else:
            seen.add(key)
            yield prompt
