"""The unpaired format of KTO: `prompt`, `completion`, `label`; the chosen answer is labelled true, the rejected one false.

https://huggingface.co/docs/trl/dataset_formats#unpaired-preference
"""

from typing import Any

from dpo_data.formats.format import Format, no_tools
from dpo_data.rows import PreferencePair


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as two records."""
    sides = ((pair.chosen, True), (pair.rejected, False))
    return [{"prompt": pair.prompt, "completion": answer, "label": label} for answer, label in sides]


KTO = Format(of=PreferencePair, records=records, unfit=no_tools)
