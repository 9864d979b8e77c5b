"""The stages, in order, and the plain loop over them."""

import logging
from typing import Any

from dpo_data import evaluate, filters, gates, ledger, lineage, pair, publish, rank, rounds, rundir, sample, train
from dpo_data.audit.people import read_labels
from dpo_data.config import Gates, Recipe, Train, dump
from dpo_data.errors import DpoDataError, GateClosed, InputError
from dpo_data.evaluation.perplexity import texts
from dpo_data.files import intact, refuse_links, room
from dpo_data.functions import loads_code, require_allowed
from dpo_data.judges.argilla import Argilla
from dpo_data.judges.members import leaves
from dpo_data.logs import logged
from dpo_data.progress import noted
from dpo_data.report import report
from dpo_data.report.rounds import report_rounds
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


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe asks for: publish and train by their tables, evaluate where prompts are held out too."""
    wanted = {"sample": True, "rank": True, "pair": True}
    wanted |= {"publish": recipe.publish is not None, "train": recipe.train is not None}
    wanted["evaluate"] = wanted["train"] and recipe.prompts.holdout > 0
    return [name for name in STAGES if wanted[name]]


def run(recipe: Recipe, run: RunDir, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Every stage of a recipe, round after round where it asks for rounds, and each time the report. What is finished is not
    done again. Returns the last report. Raises GateClosed as `conclude` does, and InUse where another process is at it."""
    told: dict[str, Any] = {}
    with room(run.path), run.held():
        for made, folder in rounds.rounds(recipe, run):
            ready(made, folder)
            closed = None
            try:
                for name in stages_of(made):
                    run_stage(name, made, folder, progress if folder is run else _in_round(folder, progress))
            except GateClosed as error:
                closed = error
            told = conclude(recipe, run, made, folder, closed)
    return told


def conclude(recipe: Recipe, run: RunDir, made: Recipe, folder: RunDir, closed: GateClosed | None = None) -> dict[str, Any]:
    """Write the report of one round, and that of the whole run where it is one of several. Returns the round's. A gate
    that was `closed` ends the rounds, and is raised only where there are none, or where the first has trained nothing."""
    told = report(made, folder)
    if folder is not run:
        report_rounds(recipe, run)
    if closed:
        first = run if folder is run else run.round(1)
        if not made.lineage or not first.stage("train").manifest:
            raise closed
        log.warning("%s", closed)
    return told


def current(recipe: Recipe, run: RunDir) -> tuple[Recipe, RunDir]:
    """The recipe and the run directory of the round that is under way: the first that is not complete, or else the last."""
    made, folder = recipe, run
    for made, folder in rounds.rounds(recipe, run):
        if not all(folder.stage(name).manifest for name in stages_of(made)):
            break
    return made, folder


def _in_round(folder: RunDir, progress: Progress) -> Progress:
    return lambda stage, done, total: progress(f"{folder.path.name} {stage}", done, total)


def ready(recipe: Recipe, run: RunDir) -> None:
    """Raises what would stop a run after hours: PublishError where it would publish, and could not; ArgillaError
    where people are to judge, and no Argilla can be asked."""
    if recipe.publish and not run.stage("publish").manifest:
        publish.ready(recipe)
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
    if recipe.rounds.chained and recipe.lineage is None:
        raise DpoDataError("The recipe has [rounds], and this is none of them", "Use `dpo-data run` or sample-and-train.")
    refuse_links(run.path)
    with room(run.path), run.held(), logged(run, name), noted(run, name, stages_of(recipe), progress) as progress:
        log.info("%s: begins in %s, with %d shards finished already", name, run, run.stage(name).finished)
        _meet(recipe, name)
        if recipe.lineage:
            lineage.keep(recipe, run)
        elif not (run.path / "recipe.toml").exists():
            run.write("recipe.toml", dump(recipe))
        before = run.stage(name).manifest
        if not before:
            _let_through(recipe, run, name)
        manifest: dict[str, Any] = getattr(STAGES[name], name)(recipe, run, progress)
        if manifest != before:
            run.write("recipe.toml", dump(recipe))
        log.info("%s: complete, %.1f s", name, manifest["seconds"])
    return manifest


def _let_through(recipe: Recipe, run: RunDir, name: str) -> None:
    """Raises GateClosed where a gate that the stage needs does not hold, and NotReady where a stage that tells is not complete:
    a recipe that evaluates publishes nothing before."""
    if name == "publish" and "evaluate" in stages_of(recipe):
        run.stage("evaluate").require()
    if name in gates.BEFORE and recipe.gates != Gates():
        run.stage("pair").require()
        gates.require((gates.Gate(**gate) for gate in report(recipe, run)["gates"]), str(run), name)


def _meet(recipe: Recipe, name: str) -> None:
    """Raises what a rule, template, filter, label or text that is bad, or code that is not allowed, would raise, before an
    engine starts for hours."""
    for key in loads_code(recipe.model_dump()):
        require_allowed(f"{key!r} has code loaded")
    if recipe.train and recipe.train.launch != Train.model_fields["launch"].default:
        require_allowed("'train.launch' may name a program of its own, which is code")
    if name in ("sample", "rank", "evaluate"):
        recipe.rank.judge.inputs()
    filters.inputs(recipe.pair.filters)
    if recipe.audit.labels:
        read_labels(recipe.audit.labels)
    if recipe.evaluate.perplexity and "evaluate" in stages_of(recipe):
        next(texts(recipe.evaluate.perplexity))


def fork(old: RunDir, new: RunDir, recipe: Recipe) -> list[str]:
    """Begin `new` with the finished stages of `old` that the recipe would make the same. Returns their names. One that was
    killed is repeated. Raises InputError where there is no `old`, or where `new` is begun, and InUse."""

    def holds(name: str, found: dict[str, Any]) -> bool:
        stage = STAGES[name]
        return name in stages_of(recipe) and found == rundir.stage_recipe(stage.settings(recipe), stage.inputs(recipe, new))

    refuse_links(old.path)
    refuse_links(new.path)
    if not old.exists:
        raise InputError(f"No run at {old}", "Name a run directory, as runs/demo.")
    with new.held():
        if (new.path / "recipe.toml").is_file():
            raise InputError(f"{new} is begun already", "Go on with it, or name a new run directory with --run.")
        kept = rundir.fork(old, new, holds)
        with intact(old.calls):
            ledger.inherit(old.calls, new.calls)
        new.keep(new.calls)
        new.write("recipe.toml", dump(recipe))
    return kept
