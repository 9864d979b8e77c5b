"""The unpaired format of KTO: `prompt`, `completion`, `label`; the chosen answer is labelled true, the rejected one false.
Where there are `tools` they stand beside them as JSON text, as TRL's trainer takes them. It takes `chat_template_kwargs` as
objects alone, to which `datasets` would give every key of any line of a JSON Lines file: so these have no place here.

https://huggingface.co/docs/trl/dataset_formats#unpaired-preference
"""

from typing import Any

from dpo_data.formats.format import Format, no_template_kwargs
from dpo_data.formats.turns import dumped
from dpo_data.rows import PreferencePair


def records(pair: PreferencePair) -> list[dict[str, Any]]:
    """A pair as two records."""
    sides = ((pair.chosen, True), (pair.rejected, False))
    tools = {"tools": dumped(pair.tools)} if pair.tools else {}
    return [{"prompt": pair.prompt, "completion": answer, "label": label, **tools} for answer, label in sides]


KTO = Format(of=PreferencePair, records=records, unfit=no_template_kwargs)
