"""Where data and settings of a training disagree, in plain sentences. Nothing here stops a run."""

from collections.abc import Iterator
from dataclasses import dataclass

from dpo_data.config import Recipe, Train
from dpo_data.errors import TrainError
from dpo_data.files import read_table
from dpo_data.models import parameters
from dpo_data.rows import PreferencePair
from dpo_data.rundir import RunDir

NARROW, CLEAR, AMPLE = 2_000, 5_000, 10_000
"""Pairs that a narrow task wants (one style, one format), and the range that a clear change over many topics wants."""
EPOCHS = (1, 3)
BETA = {"simpo": (2.0, 10.0), "sigmoid_norm": (2.0, 10.0)}
"""Usual values of beta where log-probs are averaged over tokens: by the repositories of SimPO (princeton-nlp/SimPO) and, for
DPO normalised by length, Tülu 3 (arXiv 2411.15124: 5)."""
USUAL_BETA = (0.1, 0.5)
LORA_RATE = (5e-6, 1e-5)
"""Usual learning rates of an adapter on a model of about 7B parameters (alignment-handbook, Zephyr)."""
LARGE, SMALL = 3e9, 1e9
"""Parameters from which a model is like one of 7B, and below which it wants a larger learning rate."""


@dataclass(frozen=True, slots=True)
class PairStats:
    """What is known of the pairs: how many are trained on, how many chosen answers were cut off at `max_tokens`, and how many
    pairs have an answer longer than `train.max_length` by itself. None before there are pairs."""

    pairs: int
    cut_off: int
    too_long: int


def hints(recipe: Recipe, pairs: PairStats | None) -> list[str]:
    """A sentence for each thing that is unusual; none without `[train]`."""
    if recipe.train is None:
        return []
    return [*_of_settings(recipe.train), *_of_rate(recipe), *(_of_pairs(pairs, recipe) if pairs else ())]


def pair_stats(recipe: Recipe, run: RunDir) -> PairStats | None:
    """Counted from the run; None until its pairs are complete."""
    stage = run.stage("pair")
    if recipe.train is None or stage.manifest is None:
        return None
    cut = set(_cut_off(run))
    limit = recipe.train.max_length
    pairs = cut_off = too_long = 0
    for pair in stage.rows(PreferencePair, "train.parquet"):
        pairs += 1
        cut_off += pair.chosen_id in cut
        too_long += limit is not None and max(pair.n_tokens_chosen or 0, pair.n_tokens_rejected or 0) > limit
    return PairStats(pairs, cut_off, too_long)


def _cut_off(run: RunDir) -> Iterator[str]:
    """The ids of sampled answers that reached max_tokens."""
    for shard in run.stage("sample").shards():
        table = read_table(shard, [f"completions.list.element.{name}" for name in ("completion_id", "finish_reason")])
        for completions in table["completions"].to_pylist():
            yield from (one["completion_id"] for one in completions if one["finish_reason"] == "length")


def _of_settings(train: Train) -> Iterator[str]:
    least, most = EPOCHS
    if not least <= train.epochs <= most:
        yield f"train.epochs is {train.epochs:g}; {least} to {most} is usual: fewer leave out pairs, more learn them by heart."
    loss = train.loss if isinstance(train.loss, str) else "+".join(train.loss)
    low, high = BETA.get(loss.split("+")[0], USUAL_BETA)
    if loss != "orpo" and not low <= train.beta <= high:
        yield (
            f"train.beta is {train.beta:g}; {low:g} to {high:g} is usual for the loss {loss}: less lets the model go further "
            "from where it began, more holds it there."
        )


def _of_rate(recipe: Recipe) -> Iterator[str]:
    """A learning rate that does not go with the model's size, where that is known."""
    train = recipe.train
    if train is None or train.method == "full" or (size := _size(recipe)) is None:
        return
    low, high = LORA_RATE
    usual = f"{low:g} to {high:g} is usual for an adapter on 7B parameters"
    if size >= LARGE and not low <= train.learning_rate <= high:
        yield f"train.learning_rate is {train.learning_rate:g} for {_spoken(size)} parameters; {usual}."
    if size < SMALL and train.learning_rate <= high:
        yield (
            f"train.learning_rate is {train.learning_rate:g} for {_spoken(size)} parameters; {usual}, and the smaller the "
            "model, the larger it may be."
        )


def _size(recipe: Recipe) -> float | None:
    """The parameters of the model to train; None where they are not known, or there is no model, as `train` then says."""
    try:
        return parameters(*recipe.base_model())
    except TrainError:
        return None


def _of_pairs(stats: PairStats, recipe: Recipe) -> Iterator[str]:
    if stats.pairs < NARROW:
        yield (
            f"{stats.pairs:,} pairs are few: a narrow task (one style, one format) wants {NARROW:,}, and a clear change over "
            f"many topics {CLEAR:,} to {AMPLE:,}."
        )
    elif stats.pairs < CLEAR:
        yield f"{stats.pairs:,} pairs do for a narrow task; a clear change over many topics wants {CLEAR:,} to {AMPLE:,}."
    if stats.cut_off:
        yield (
            f"{stats.cut_off:,} chosen answers were cut off at sample.max_tokens = {recipe.sample.max_tokens}, so the model "
            "learns to stop in mid-sentence: raise it, or drop them."
        )
    if stats.too_long:
        assert recipe.train is not None
        yield (
            f"{stats.too_long:,} pairs have an answer longer than train.max_length = {recipe.train.max_length} and are left "
            "out: raise it, or lower sample.max_tokens."
        )


def _spoken(count: float) -> str:
    """A count of parameters as people say it: 7.2B, 135M, 0.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count / 1e6:.2g}M"
