"""The recipe's judge at work: what it may spend, and what it gets to see."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from dpo_data.config import Recipe
from dpo_data.files import intact
from dpo_data.ledger import Ledger
from dpo_data.rows import Sample, content_id
from dpo_data.rundir import RunDir
from dpo_data.seams import Judge
from dpo_data.templates import without_thinking


@contextmanager
def judging(recipe: Recipe, run: RunDir, stage: str) -> Iterator[tuple[Judge, Ledger]]:
    """The judge, and the ledger through which its engines are asked, for a stage of a run."""
    limits, basis = recipe.rank, content_id(run.stage(stage).recipe)
    with (
        _kept(run),
        intact(run.calls),
        closing(Ledger(run.calls, stage, recipe.prices, limits.max_tokens_total, limits.max_cost, basis)) as ledger,
        closing(limits.judge.build(recipe.sample.engine, recipe.seed, ledger)) as judge,
    ):
        if not run.stage(stage).shards():
            ledger.decide_anew()
        yield judge, ledger


@contextmanager
def _kept(run: RunDir) -> Iterator[None]:
    """What was asked and answered goes to where the run is, however the block ends."""
    try:
        yield
    finally:
        run.keep(run.calls)


def shown(groups: Iterable[Sample], thinking: bool) -> Iterator[Sample]:
    """What a judge sees of each prompt's answers: all, or what they say after their thinking."""
    for group in groups:
        if thinking:
            yield group
        else:
            answers = [replace(one, text=without_thinking(one.text)) for one in group.completions]
            turns = [
                {**turn, "content": without_thinking(turn["content"])} if turn["role"] == "assistant" else turn
                for turn in group.prompt
            ]
            yield replace(group, prompt=turns, completions=answers)
