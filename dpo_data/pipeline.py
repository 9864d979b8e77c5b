"""The stages, in order, and the plain loop over them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpo_data import evaluate, filters, gates, ledger, pair, publish, rank, rundir, sample, train
from dpo_data.audit.people import read_labels
from dpo_data.config import Gates, Recipe, dump
from dpo_data.errors import DpoDataError
from dpo_data.hub import require_token
from dpo_data.judges.argilla import Argilla
from dpo_data.judges.members import leaves
from dpo_data.report import report
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

log = logging.getLogger(__name__)

STAGES: dict[str, Any] = {
    "sample": sample,
    "rank": rank,
    "pair": pair,
    "train": train,
    "evaluate": evaluate,
    "publish": publish,
}
"""A stage is a module with three functions. The one of its own name, called with (recipe, run, progress), reads the folders of
the stages before, fills its own and returns its manifest; `settings(recipe)` and `inputs(recipe, run)` say what decides it."""

GATED = ("publish", "train")
"""The stages that do not begin before the recipe's gates hold."""


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe asks for: publish and train by their tables, evaluate where prompts are held out too."""
    wanted = {"sample": True, "rank": True, "pair": True}
    wanted |= {"publish": recipe.publish is not None, "train": recipe.train is not None}
    wanted["evaluate"] = wanted["train"] and recipe.prompts.holdout > 0
    return [name for name in STAGES if wanted[name]]


def run(recipe: Recipe, run: RunDir, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Every stage of a recipe, then the report. What is finished is not done again. Returns the report."""
    ready(recipe, run)
    for name in stages_of(recipe):
        run_stage(name, recipe, run, progress)
    return report(recipe, run)


def ready(recipe: Recipe, run: RunDir) -> None:
    """Raises what would stop a run after hours: PublishError where it would publish, and nobody is logged in; ArgillaError
    where people are to judge, and no Argilla can be asked."""
    if recipe.publish and not run.stage("publish").manifest:
        require_token()
    if not all(run.stage(name).manifest for name in ("rank", "evaluate") if name in stages_of(recipe)):
        for _, judge in leaves(recipe.rank.judge, "rank.judge"):
            if isinstance(judge, Argilla):
                judge.ready()


def run_stage(name: str, recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """One stage. The stages before it must be complete. Returns its manifest. Raises GateClosed where the recipe's gates do not
    let publish or train begin; the report that shows why is written first."""
    if name not in stages_of(recipe):
        lacks = "[train] and prompts.holdout" if name == "evaluate" else f"[{name}]"
        raise DpoDataError(f"The recipe asks for no stage {name!r}", f"Give it {lacks}.")
    with logged(run):
        log.info("%s: begins in %s, with %d shards finished already", name, run.path, len(run.stage(name).shards()))
        _meet(recipe, name)
        if not (run.path / "recipe.toml").exists():
            run.write("recipe.toml", dump(recipe))
        before = run.stage(name).manifest
        if name in GATED and not before and recipe.gates != Gates():
            run.stage("pair").require()
            gates.require((gates.Gate(**gate) for gate in report(recipe, run)["gates"]), str(run.path))
        manifest: dict[str, Any] = getattr(STAGES[name], name)(recipe, run, progress)
        if manifest != before:
            run.write("recipe.toml", dump(recipe))
        log.info("%s: complete, %.1f s", name, manifest["seconds"])
    return manifest


def _meet(recipe: Recipe, name: str) -> None:
    """Raises what a rule, template, filter or label that is bad would raise, before an engine starts for hours."""
    if name in ("sample", "rank", "evaluate"):
        recipe.rank.judge.inputs()
    filters.inputs(recipe.pair.filters)
    if recipe.audit.labels:
        read_labels(recipe.audit.labels)


def fork(old: RunDir, new: RunDir, recipe: Recipe) -> list[str]:
    """Begin `new` with the finished stages of `old` that the recipe would make the same. Returns their names."""

    def holds(name: str, found: dict[str, Any]) -> bool:
        stage = STAGES[name]
        return name in stages_of(recipe) and found == rundir.stage_recipe(stage.settings(recipe), stage.inputs(recipe, new))

    kept = rundir.fork(old, new, holds)
    ledger.inherit(old.calls, new.calls)
    new.write("recipe.toml", dump(recipe))
    return kept


@contextmanager
def logged(run: RunDir) -> Iterator[None]:
    """Keep what dpo_data and its children log while the block runs, in logs/run.log."""
    handler = logging.FileHandler(run.logs / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("dpo_data", "vllm", "reward_model", "train")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
