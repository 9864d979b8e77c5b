"""What counts as the same text, and which texts repeat, wholly or nearly."""

from dpo_data.dedup.contamination import Contamination
from dpo_data.dedup.exact import keys, repeats
from dpo_data.dedup.jaccard import repetition, similarity, within
from dpo_data.dedup.near import Twins, near_duplicates
from dpo_data.dedup.shingles import Ragged, units
from dpo_data.dedup.text import normalised

__all__ = [
    "Contamination",
    "Ragged",
    "Twins",
    "keys",
    "near_duplicates",
    "normalised",
    "repeats",
    "repetition",
    "similarity",
    "units",
    "within",
]
