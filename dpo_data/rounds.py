"""Rounds: each samples from the model that the one before has trained, for as long as that is certainly better.

The run directories are the only truth here too: what is complete, how it came out and so which round is next is read from them.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile

from pydantic import Field

from dpo_data import lineage
from dpo_data.audit.schema import Part
from dpo_data.config import Recipe, load
from dpo_data.evaluation.schema import Gain
from dpo_data.evaluation.verdict import FEWEST
from dpo_data.publish import tag_of
from dpo_data.rundir import RunDir


class Round(Part):
    """How one round came out."""

    round: int = Field(description="counted from 1 in this run")
    run: str = Field(description="its run directory, beside rounds.json")
    sampled_from: str = Field(description="the model that answered: a folder or a name on the Hub, or an adapter's folder")
    complete: bool = Field(description="whether it is evaluated and its report written; all below is null or empty before")
    prompts: int | None = Field(description="prompts that it sampled")
    reused: int | None = Field(
        description="those of them that an earlier round had sampled; null where rounds take all prompts"
    )
    pairs: int | None = Field(description="pairs that it trained on")
    over_base: Gain | None = Field(description="gain over the base; null where nothing was compared")
    over_last: Gain | None = Field(description="gain over the model that sampled it, which for a very first round is the base")
    closed: list[str] = Field(description="the gates that do not hold, of those whose stage is complete")

    @property
    def passed(self) -> bool:
        """Whether its model is certainly better than the one that sampled, and every gate holds."""
        interval = _interval(self.over_last)
        return self.complete and not self.closed and interval is not None and interval[0] > 0


class Rounds(Part):
    """rounds.json."""

    name: str = Field(description="the recipe's name")
    count: int = Field(description="how many rounds the recipe asks for at most")
    shared: bool = Field(
        description="whether rounds share the prompts among them, so that none is taken twice while others are left"
    )
    base: str = Field(description="the model that the very first round sampled from")
    rounds: list[Round] = Field(description="those that have begun, in their order")
    best: int | None = Field(description="the last round that passed, as did all before it; null where the first did not")
    stopped: str | None = Field(description="why no further round follows; null while one does")


def rounds(recipe: Recipe, run: RunDir) -> Iterator[tuple[Recipe, RunDir]]:
    """A run's rounds, each with its own recipe and run directory. The next one is there once the one before is complete; a run
    that is not one of rounds is its own only one."""
    if not recipe.rounds.chained or recipe.lineage:
        yield recipe, run
        return
    if recipe.rounds.count == 1:
        yield lineage.of_round(recipe, lineage.kept(recipe, run) or lineage.first(recipe, run)), run
        return
    for number in range(1, recipe.rounds.count + 1):
        folder = run.round(number)
        stands = lineage.kept(recipe, folder)
        if stands is None:
            stands = lineage.after(run.round(number - 1)) if number > 1 else lineage.first(recipe, run)
        yield _tagged(lineage.of_round(recipe, stands), run, folder), folder
        ended = _ended(_found(run)[:number])
        if len(ended) < number or stopped(ended, recipe.rounds.count):
            return


def summary(recipe: Recipe, run: RunDir) -> Rounds:
    """What rounds.json holds."""
    begun = _found(run)
    return Rounds(
        name=recipe.name,
        count=recipe.rounds.count,
        shared=not recipe.rounds.reused,
        base=recipe.policy().model,
        rounds=begun,
        best=best(begun),
        stopped=stopped(_ended(begun), recipe.rounds.count),
    )


def best(rounds: Sequence[Round]) -> int | None:
    """The last of the rounds that passed, as did all before it; None where the first did not."""
    passed = list(takewhile(lambda one: one.passed, rounds))
    return passed[-1].round if passed else None


def stopped(rounds: Sequence[Round], count: int) -> str | None:
    """Why no round follows these, which have ended, of `count` at most; None where one does."""
    if not rounds:
        return None
    last = rounds[-1]
    gain, interval, name = last.over_last, _interval(last.over_last), f"round {last.round}"
    if last.closed:
        return f"{name} did not pass: {', '.join(last.closed)} does not hold"
    if gain is None or interval is None:
        return f"{name} cannot be told from the model it began with: too few answers were compared"
    if not last.passed:
        why = "which includes zero" if interval[1] >= 0 else "which is a loss"
        return f"the gain of {name} over the model it began with is {points(gain)} points of win rate, {why}"
    return f"all {count} rounds are done" if last.round >= count else None


def points(gain: Gain) -> str:
    """A gain in win rate with its interval, in points of a hundred: `+3.1 (−0.4 to +6.6)`."""

    def one(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", "−")

    return (
        f"{one(gain.value)} ({one(gain.low)} to {one(gain.high)})"
        if gain.low is not None and gain.high is not None
        else one(gain.value)
    )


def _found(run: RunDir) -> list[Round]:
    return [_round(number, one) for number, one in enumerate(run.rounds, 1)]


def _ended(rounds: Sequence[Round]) -> list[Round]:
    """The rounds that are complete, or that a gate has ended: one before training leaves nothing to evaluate."""
    return list(takewhile(lambda one: one.complete or one.closed, rounds))


def _interval(gain: Gain | None) -> tuple[float, float] | None:
    """A gain's 95 % interval; None where too few prompts were compared for it to mean anything."""
    if gain is None or gain.low is None or gain.high is None or gain.prompts < FEWEST:
        return None
    return gain.low, gain.high


def _round(number: int, run: RunDir) -> Round:
    recipe, file = load(run.path / "recipe.toml"), run.path / "report.json"
    told = json.loads(file.read_text()) if file.is_file() else {}
    sample, train, evaluate = (run.stage(name).manifest or {} for name in ("sample", "train", "evaluate"))
    gain, policy = evaluate.get("gain") or {}, recipe.policy()
    again = recipe.lineage is not None and recipe.lineage.round > 1
    return Round(
        round=number,
        run=run.path.name,
        sampled_from=policy.adapter or policy.model,
        complete=bool(evaluate and told.get("evaluate")),
        prompts=sample.get("prompts"),
        reused=sample.get("reused"),
        pairs=train.get("pairs"),
        over_base=gain.get("over_base"),
        over_last=gain.get("over_last" if again else "over_base"),
        closed=[
            gate["name"]
            for gate in told.get("gates", [])
            if not gate["holds"] and told["stages"][gate["after"]]["state"] == "complete"
        ],
    )


def _tagged(recipe: Recipe, run: RunDir, folder: RunDir) -> Recipe:
    """A round's recipe, whose name on the Hub is the run's with its number."""
    if recipe.publish is None:
        return recipe
    tag = f"{recipe.publish.tag or tag_of(run)}-{folder.path.name}"
    return recipe.model_copy(update={"publish": recipe.publish.model_copy(update={"tag": tag})})
