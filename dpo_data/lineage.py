"""Which model a round starts from: decided once, when it begins, and kept in its recipe.toml."""

import fcntl
import json
import logging
from pathlib import Path

from dpo_data.config import Lineage, Recipe, dump, load
from dpo_data.errors import StaleRun
from dpo_data.evaluation.sides import policies
from dpo_data.rundir import RunDir
from dpo_data.store import is_url

log = logging.getLogger(__name__)


def first(recipe: Recipe, run: RunDir) -> Lineage:
    """Where a run's first round stands: at the beginning, unless the recipe goes on from the newest model that passed."""
    last = newest(recipe, run) if recipe.rounds.continued else None
    return after(last) if last else _beginning(recipe)


def after(run: RunDir) -> Lineage:
    """Where the round stands that follows a complete one. Rounds that are gone are no longer named, and the log says so."""
    lineage = _standing(run)
    there = [one for one in lineage.runs if RunDir(one).exists]
    for one in lineage.runs:
        if one not in there:
            log.warning("%s is gone: its prompts count as never used", one)
    return lineage.model_copy(update={"round": lineage.round + 1, "runs": [*there, _name(run)]})


def kept(recipe: Recipe, run: RunDir) -> Lineage | None:
    """Where a round stands that has begun; None where it has not, or began from another base than the recipe's."""
    file = run.path / "recipe.toml"
    lineage = load(file).lineage if file.is_file() else None
    return lineage if lineage and _base(lineage) == _base(_beginning(recipe)) else None


def keep(recipe: Recipe, run: RunDir) -> None:
    """Write down where a round stands, before anything is sampled. Raises StaleRun where that is decided otherwise: by another
    process that has begun the same run, or for another base."""
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / ".lineage.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = run.path / "recipe.toml"
        found = load(file).lineage if file.is_file() else None
        if found is None:
            run.write("recipe.toml", dump(recipe))
        elif found != recipe.lineage:
            raise StaleRun(
                f"{run} has begun as round {found.round} of {found.base}, after {', '.join(found.runs[-1:]) or 'none'}",
                "Run again to go on with that, or name a new run directory.",
            )


def of_round(recipe: Recipe, lineage: Lineage) -> Recipe:
    """The recipe of the round that stands there. It samples from what the round before has trained, by the chat template of
    the training, and trains it on; only the first round has an SFT step."""
    if not lineage.runs:
        return recipe.model_copy(update={"lineage": lineage})
    assert recipe.train is not None
    last = RunDir(lineage.runs[-1])
    stage = last.stage("train")
    policy = policies(load(last.path / "recipe.toml"), stage.require(), str(stage))["trained"]
    place = {"model": policy.model, "revision": policy.revision, "adapter": policy.adapter}
    template = recipe.policy().chat_template
    engine = recipe.sample.engine.model_copy(update={**place, "chat_template": template})
    return recipe.model_copy(
        update={
            "lineage": lineage,
            "sample": recipe.sample.model_copy(update={"engine": engine}),
            "train": recipe.train.model_copy(update={"model": None, "revision": None, "sft": None}),
        }
    )


def newest(recipe: Recipe, run: RunDir) -> RunDir | None:
    """The newest complete run beside this one, of the same recipe's name, base and held-out prompts, whose gates hold: of one
    with rounds, the best of these. Newest is what was evaluated last."""
    models = [model for one in run.beside if (model := best(one)) and _evaluated(model)]
    return next((one for one in sorted(models, key=_evaluated, reverse=True) if _passed(recipe, one)), None)


def best(run: RunDir) -> RunDir | None:
    """A run itself, or of one with rounds the best of these; None where none of these passed."""
    if not run.rounds:
        return run
    told = run.path / "rounds.json"
    number = json.loads(told.read_text())["best"] if told.is_file() else None
    return run.round(number) if number else None


def _evaluated(run: RunDir) -> float:
    """When it was evaluated, in seconds of the epoch; 0 where it was not."""
    manifest = run.stage("evaluate").file("manifest.json")
    return manifest.stat().st_mtime if manifest.is_file() else 0.0


def _passed(recipe: Recipe, run: RunDir) -> bool:
    """Whether a run is of this recipe's name and base, held out what this recipe does, and all of its gates hold. What its
    report does not tell has not passed."""
    file = run.path / "report.json"
    told = json.loads(file.read_text()) if file.is_file() else {}
    if not told or told["name"] != recipe.name or not told["evaluate"] or not run.stage("train").manifest:
        return False
    if _holding_out(load(run.path / "recipe.toml")) != _holding_out(recipe):
        return False
    return _base(_standing(run)) == _base(_beginning(recipe)) and all(gate["holds"] for gate in told["gates"])


def _standing(run: RunDir) -> Lineage:
    """Where a run stands, by its own recipe."""
    recipe = load(run.path / "recipe.toml")
    return recipe.lineage or _beginning(recipe)


def _beginning(recipe: Recipe) -> Lineage:
    """Where a recipe's first round stands."""
    policy = recipe.policy()
    return Lineage(base=policy.model, revision=policy.revision, adapter=policy.adapter)


def _holding_out(recipe: Recipe) -> tuple[int, float]:
    """What decides whether a prompt is held out, besides its id: with another, a run would be measured on prompts that an
    earlier one has trained on. The file does not: a prompt that stands in two files is held out of both, or of none."""
    return recipe.seed, recipe.prompts.holdout


def _base(lineage: Lineage) -> tuple[str, str | None, str | None]:
    return lineage.base, lineage.revision, lineage.adapter


def _name(run: RunDir) -> str:
    """A run directory as recipes name it: by its URL, or its path, from the working folder where it is below that."""
    if is_url(str(run)):
        return str(run)
    path, here = run.path.resolve(), Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
