"""The table `[gates]`."""

from pydantic import Field

from dpo_data.seams import Settings


class Gates(Settings):
    """What must hold before anything is published or trained on, and what training may not do.

    Before training: shares (0–1) of the report's audit, the agreement (Kendall's τ-b), and the number of pairs. The agreement
    is with people on a cascade's calibration slice, else on the labelled prompts; without people, that of a cascade's or
    panel's judges with each other.

    While it trains, which stops where one does not hold: `max_chosen_drop`, how far the log-probability of the chosen answers
    may fall against the reference, and `max_kl`, how far the model may move from it, both in nats a token.

    After evaluate, before publish: `min_win_rate`, the share of comparisons that the trained model wins against the base, ties
    as half; `min_parse_rate`, the share of its answers that meet `evaluate.must_parse`; `max_perplexity_rise`, by how much the
    perplexity on `evaluate.perplexity` may grow: 0.05 is 5 %.
    """

    max_tie_rate: float | None = Field(None, ge=0, le=1)
    max_flip_rate: float | None = Field(None, ge=0, le=1)
    max_abstain_rate: float | None = Field(None, ge=0, le=1)
    min_agreement: float | None = Field(None, ge=-1, le=1)
    min_pairs: int | None = Field(None, ge=1)
    max_chosen_drop: float | None = Field(None, ge=0)
    max_kl: float | None = Field(None, ge=0)
    min_win_rate: float | None = Field(None, ge=0, le=1)
    min_parse_rate: float | None = Field(None, ge=0, le=1)
    max_perplexity_rise: float | None = Field(None, ge=-1)
