"""What is read and written besides the canonical rows. A format that is written is read as well: by its columns."""

from dpo_data.formats.axolotl import AXOLOTL
from dpo_data.formats.format import Format
from dpo_data.formats.hh import HH
from dpo_data.formats.kto import KTO
from dpo_data.formats.llamafactory import LLAMAFACTORY
from dpo_data.formats.nemo_rl import NEMO_RL
from dpo_data.formats.openrlhf import OPENRLHF
from dpo_data.formats.text import TEXT
from dpo_data.formats.trl import TRL
from dpo_data.formats.ultrafeedback import ULTRAFEEDBACK

FORMATS: dict[str, Format] = {
    "trl": TRL,
    "llamafactory": LLAMAFACTORY,
    "axolotl": AXOLOTL,
    "openrlhf": OPENRLHF,
    "nemo_rl": NEMO_RL,
    "hh": HH,
    "kto": KTO,
    "ultrafeedback": ULTRAFEEDBACK,
    "text": TEXT,
}
"""What `export` writes. The last two hold all answers of a prompt, the others pairs."""
