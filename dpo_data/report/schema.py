"""What report.json holds: every key, its unit, and when it is null. Shares are 0–1, times are seconds."""

from typing import Any, Literal

from pydantic import Field

from dpo_data.audit.schema import Audit, Part
from dpo_data.evaluation.schema import Evaluation
from dpo_data.gates import Gate


class StageState(Part):
    state: Literal["complete", "begun", "not begun"] = Field(description="how far the stage is")
    rows: int = Field(description="rows on disk, dropped ones among them; while a stage is begun, those of its finished shards")


class Step(Part):
    name: str = Field(description="what is counted; for a filter's drops, the filter's name")
    kind: Literal["left", "out", "made", "part"] = Field(
        description="left: what remains, namely what was there less every `out` between; made: the pairs that the prompts "
        "gave, where some gave several; part: the parts of the last"
    )
    count: int = Field(description="prompts; from `made` on, or else from `paired` on, pairs")


class Answers(Part):
    prompts: int = Field(description="prompts with answers")
    models: dict[str, int] = Field(description="how many answers each model gave")


class Pairs(Part):
    train: int = Field(description="pairs in train.parquet")
    test: int = Field(description="pairs in test.parquet")
    dropped: dict[str, int] = Field(description="rows of dropped.parquet: prompts without a pair, and pairs, by filter")


class Spread(Part):
    """A distribution. Quantiles are exact up to 20,000 values, and beyond that those of an evenly spaced sample."""

    count: int = Field(description="values")
    mean: float = Field(description="arithmetic mean")
    least: float = Field(description="minimum")
    p10: float = Field(description="10 % quantile")
    median: float = Field(description="50 % quantile")
    p90: float = Field(description="90 % quantile")
    most: float = Field(description="maximum")


class Histogram(Part):
    edges: list[float] = Field(description="the bins' edges, one more than there are bins")
    shares: list[float] = Field(description="each bin's share of the values (0–1)")


class Length(Part):
    chosen: Spread = Field(description="length of the chosen answers")
    rejected: Spread = Field(description="length of the rejected answers")
    chosen_longer: float = Field(description="share of pairs in which the chosen answer is the longer one")
    equal: float = Field(description="share of pairs in which both are equally long")


class Lengths(Part):
    words: Length = Field(description="in words, as white space parts them")
    tokens: Length | None = Field(description="in tokens, over the pairs whose engine told them; null where it told none")


class Scores(Part):
    judge: str = Field(description="who ranked")
    judged: int = Field(description="answers with a score")
    unjudged: int = Field(description="answers without one")
    spread: Spread | None = Field(description="of all scores; null where nothing was scored")
    histogram: Histogram | None = Field(description="of all scores; null where nothing was scored")
    margin: Spread | None = Field(description="score of chosen less score of rejected, over the pairs; null before pair")


class Alarm(Part):
    name: str = Field(description="what kind of alarm")
    step: int = Field(description="the optimizer step at which it rang first")
    value: float | None = Field(description="the figure that rang; null where the loss is no number")
    limit: float | None = Field(description="what it exceeded, or fell below; null as above")
    said: str = Field(description="the same in words")


class Stop(Part):
    gate: str = Field(description="the gate that stopped it, `finite_loss`, or `early_stop`")
    value: float | None = Field(
        description="what it was, in nats a token; of early_stop the evaluations without a lower loss; null for no number"
    )
    limit: float | None = Field(description="the recipe's limit; null where the loss is no number")
    step: int = Field(description="the optimizer step at which it stopped")


class Train(Part):
    model: str = Field(description="the model that was trained")
    model_revision: str | None = Field(description="its commit on the Hub, or its folder's content hash")
    pairs: int = Field(description="pairs trained on")
    too_long: int = Field(description="pairs left out because they are longer than max_length")
    max_length: int = Field(description="tokens of the longest pair trained on, prompt and answer together")
    precision: str = Field(description="bf16 or fp32")
    device: str = Field(description="cpu, or the GPU's name")
    steps: int = Field(description="optimizer steps")
    resumed_at: int = Field(description="the step of the checkpoint that the last attempt went on from; 0 for none")
    held_out: dict[str, float | None] = Field(description="TRL's metrics on test.parquet after training; null for not finite")
    first: dict[str, float | None] = Field(description="the first training metrics that TRL logged; null for not finite")
    last: dict[str, float | None] = Field(description="the last training metrics that TRL logged; null for not finite")
    alarms: list[Alarm] = Field(description="what rang while it trained, each alarm once")
    stopped: Stop | None = Field(description="what ended it before its last step; null for nothing")
    kept: int = Field(description="the step whose weights are kept as `model`")
    chosen_drop: float | None = Field(
        description="of the kept weights on the test pairs, or without such in the log at that step or before: how far the "
        "log-probability of chosen answers is below the reference's, in nats a token; null where it was not measured"
    )
    rejected_drop: float | None = Field(description="the same of the rejected answers")
    kl: float | None = Field(description="the same of both sides: an estimate of KL(reference ‖ model) on these answers")


Messages = list[dict[str, str]]


class PairExample(Part):
    prompt: Messages = Field(description="the conversation; texts beyond 2,000 characters are cut, here and below")
    chosen: str = Field(description="the chosen answer")
    rejected: str = Field(description="the rejected answer")
    score_chosen: float = Field(description="the judge's score of the chosen answer")
    score_rejected: float = Field(description="the judge's score of the rejected answer")


class EvaluateExample(Part):
    """A held-out prompt, with an answer of each model: the two whose scores differ as the means do, in that direction and as
    nearly by as much as can be."""

    prompt_id: str = Field(description="the prompt's id")
    prompt: Messages = Field(description="the conversation")
    base: str = Field(description="the base model's answer; empty where it failed")
    trained: str = Field(description="the trained model's answer; empty where it failed")
    score_base: float | None = Field(description="the judge's score; null where it gave none")
    score_trained: float | None = Field(description="the judge's score; null where it gave none")
    moved: Literal["improved", "harmed", "same"] | None = Field(
        description="what became of the mean score of all answers to the prompt; where some could not be scored, who wins more "
        "comparisons; null where nothing was compared"
    )
    change: float | None = Field(
        description="mean score of the trained model's answers less that of the base's; null where one has no score"
    )


class Examples(Part):
    pairs: list[PairExample] = Field(description="from train.parquet: evenly spaced, not picked by result")
    evaluate: list[EvaluateExample] = Field(
        description="base and trained model on the same held-out prompts: the most improved first, then the most harmed, then, "
        "where these are few, others, evenly spaced"
    )


class Report(Part):
    """report.json. What a run has not come to is null, or empty."""

    name: str = Field(description="the recipe's name")
    stages: dict[str, StageState] = Field(description="how far each stage is, in their order")
    funnel: list[Step] = Field(description="where every prompt went, in order, as far as stages are complete")
    answers: Answers | None = Field(description="who answered; null before sample")
    pairs: Pairs | None = Field(description="how many pairs there are")
    lengths: Lengths | None = Field(description="how long chosen and rejected answers are, over train and test pairs")
    scores: Scores | None = Field(description="what the judge made of the answers")
    audit: Audit | None = Field(description="how far the judge can be trusted; null before rank")
    gates: list[Gate] = Field(
        description="what the recipe wants to hold before anything is published or trained on, and of training"
    )
    hints: list[str] = Field(description="where data and settings of the training disagree, in sentences; empty without one")
    train: Train | None = Field(description="how training went")
    evaluate: Evaluation | None = Field(description="base and trained model on the held-out prompts")
    examples: Examples = Field(description="a few pairs, and a few answers before and after")
    timings: dict[str, float] = Field(description="seconds of each complete stage, of the attempt that completed it")
    versions: dict[str, str] = Field(description="package versions; where stages ran with different ones, all of them")
    git_commit: str | None = Field(description="the working folder's commit when the last complete stage ran")
    recipe: dict[str, Any] = Field(description="the recipe, defaults written out")
