"""What evaluate tells: every key, its unit, and when it is null. Shares are 0–1.

The sides are `base`, the model as it was at first; `trained`; and in a second or later round `last`, which sampled this round.
"""

from pydantic import Field

from dpo_data.audit.schema import Part


class Estimate(Part):
    """A figure that would come out otherwise with other prompts like these. The interval comes from resampling prompts; it is
    too narrow for fewer than some thirty of them, and has no width where every prompt is alike."""

    value: float = Field(description="the figure itself")
    low: float | None = Field(description="lower end of its 95 % interval; null for fewer than two prompts")
    high: float | None = Field(description="upper end of its 95 % interval; null for fewer than two prompts")


class Gain(Estimate):
    """By how much the trained model's win rate is above one half: 0 is as good as the other, ½ wins every comparison."""

    tied: float = Field(description="share of comparisons in which both answers score the same, averaged over prompts")
    prompts: int = Field(description="prompts in which answers were compared")
    comparisons: int = Field(
        description="comparisons: each answer of the one side with each of the other, prompt by prompt; one that could not be "
        "scored, or that a failed prompt lacks, loses against one with a score"
    )


class Gains(Part):
    over_base: Gain | None = Field(description="against the base; null where no two answers were compared")
    over_last: Gain | None = Field(description="against the model that sampled this round; null in a first round")


class Side(Part):
    score: float = Field(description="the headline share")
    measure: str = Field(description="what `score` is the share of")
    shares: dict[str, float] = Field(
        description="share of judged answers that reach each threshold of the recipe, in its order; one that could not be "
        "scored reaches none, nor does one that a failed prompt lacks, where another side's has a score"
    )
    mean_score: float | None = Field(description="the judge's mean score of an answer; null where it gave none")
    win_rate: float = Field(
        description="share of comparisons won, ties as half, averaged over prompts: of the trained model's answers with the "
        "base's, of any other side's with the trained one's; ½ where none was compared"
    )
    win_rate_length_controlled: float | None = Field(
        description="the same, if all answers were equally long (arXiv 2404.04475); null where that cannot be told, because "
        "one model's answers are always the longer, or because none was compared"
    )
    answers: int = Field(description="answers sampled")
    failed: int = Field(description="prompts at which it failed, so that they have no answer")
    judged: int = Field(description="answers with a score")
    judged_share: float = Field(description="the same as a share of all answers asked for, evaluate.n for each failed prompt")
    words: float = Field(description="mean words an answer")
    cut_off: float = Field(description="share of answers cut off at max_tokens")
    parsed: float | None = Field(description="share of answers that meet evaluate.must_parse; null where there is no such form")


class Changes(Part):
    """Trained less base, both over all their answers."""

    shares: dict[str, Estimate] = Field(description="of each threshold's share, where answers of both have scores")
    mean_score: Estimate | None = Field(description="of the mean score; null where a side has none")
    judged: Estimate | None = Field(description="of judged_share; null without a prompt")
    failed: Estimate | None = Field(description="of the share of prompts at which it failed; null without a prompt")
    cut_off: Estimate | None = Field(description="of the share cut off; null where a side has no answer")
    parsed: Estimate | None = Field(description="of the share that meets evaluate.must_parse; null where there is none")


class Moved(Part):
    """Prompts by the mean score of the trained model's answers less that of the base's; where some could not be scored, by who
    wins more comparisons. Prompts in which nothing was compared do not count."""

    improved: int = Field(description="prompts whose answers are better after training")
    harmed: int = Field(description="prompts whose answers are worse after training")
    same: int = Field(description="prompts whose answers are as good as before")


class HeldOutPairs(Part):
    accuracy: float | None = Field(description="share of test.parquet's pairs in which the chosen answer has the higher reward")
    margin: float | None = Field(description="mean reward of the chosen answer less that of the rejected one")
    pairs: int | None = Field(description="how many pairs these are; null where it is not known")


class Perplexity(Part):
    """How well the models expect a text that has nothing to do with the task; what training makes them forget shows here."""

    path: str = Field(description="evaluate.perplexity of the recipe")
    texts: int = Field(description="texts read")
    tokens: int = Field(
        description="tokens that were predicted, each from those before it in a window of 1,024, or of what the model takes"
    )
    base: float = Field(description="exp of the mean negative log-likelihood of a token, in nats, under the base")
    trained: float = Field(description="the same under the trained model")
    rise: Estimate = Field(description="trained / base − 1; the interval is by resampling stretches of text")


class Evaluation(Part):
    prompts: int = Field(description="held-out prompts")
    base: Side = Field(description="the model before training; from the second round on, before the first")
    trained: Side = Field(description="the model after training")
    last: Side | None = Field(description="the model that sampled this round; null in a first round")
    gain: Gains = Field(description="by how much the trained model wins against the others")
    changes: Changes = Field(description="how else the trained model's answers differ from the base's")
    length: Estimate | None = Field(description="mean words an answer, trained / base; null where the base says no word")
    moved: Moved = Field(description="how many prompts are answered better and worse")
    held_out: HeldOutPairs | None = Field(description="TRL's metrics on the pairs kept for test; null where there were none")
    perplexity: Perplexity | None = Field(description="null without evaluate.perplexity in the recipe")
    verdict: str = Field(description="whether the trained model is better than the base, in words, with the interval")
    worse: list[str] = Field(description="what got worse, a sentence each; empty where nothing that was measured did")
