"""What counts as the same text, and which texts repeat."""

import unicodedata
from collections.abc import Iterable, Iterator

from dpo_data.rows import DroppedPrompt, Prompt


def normalised(text: str) -> str:
    """Text as it is compared: Unicode NFC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


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
