"""TRL's explicit-prompt conversational preference format, in Parquet: of a pair's columns those that trainers read.

https://huggingface.co/docs/trl/dataset_formats#preference
"""

from dpo_data.formats.format import Format
from dpo_data.rows import PreferencePair

TRL = Format(
    of=PreferencePair,
    records=lambda pair: [pair],
    suffix=".parquet",
    columns=("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "tools", "chat_template_kwargs"),
)
