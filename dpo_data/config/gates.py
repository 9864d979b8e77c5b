"""The table `[gates]`."""

from pydantic import Field

from dpo_data.seams import Settings


class Gates(Settings):
    """What must hold before anything is published or trained on: shares (0–1) of the report's audit, the agreement
    (Kendall's τ-b), and the number of pairs. The agreement is with people on a cascade's calibration slice, else on the
    labelled prompts; without people, that of a cascade's or panel's judges with each other."""

    max_tie_rate: float | None = Field(None, ge=0, le=1)
    max_flip_rate: float | None = Field(None, ge=0, le=1)
    max_abstain_rate: float | None = Field(None, ge=0, le=1)
    min_agreement: float | None = Field(None, ge=-1, le=1)
    min_pairs: int | None = Field(None, ge=1)
