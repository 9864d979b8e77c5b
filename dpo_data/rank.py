"""A judge ranks every prompt's completions."""

from dataclasses import asdict
from typing import Any

from dpo_data.config import Recipe
from dpo_data.errors import TooManyFailures, Unfinished
from dpo_data.files import read_rows
from dpo_data.judging import judging, shown
from dpo_data.progress import counted
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress


def rank(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Fill `2-rank` with Ranking rows, one for each Sample row that has completions. Returns the manifest."""
    sampled = run.stage("sample")
    sampled.require()
    stage = run.stage("rank").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    total = sum(error is None for error in sampled.column("error"))
    progress("rank", 0, total)
    with judging(recipe, run, "rank") as (judge, ledger):
        missing = stage.fill(
            ((int(path.stem), [row for row in read_rows(path, Sample) if not row.error]) for path in sampled.shards()),
            lambda groups: counted(judge.rank(shown(groups, recipe.rank.thinking)), progress),
            Ranking,
            lambda rows: progress("rank", rows, total),
        )
        spent, here = ledger.spent("rank"), ledger.tokens_here
    if missing:
        raise Unfinished(f"{total - missing} of {total} prompts are ranked", "Run again to collect the others.")
    abstained = [reason for reason in stage.column("abstained") if reason]
    if len(abstained) > recipe.rank.max_abstained * total:
        raise TooManyFailures(
            f"The judge abstained on {len(abstained)} of {total} prompts; the first reason: {abstained[0]}",
            f"Use another judge or template and delete {stage}, or raise rank.max_abstained.",
        )
    return stage.finish(prompts=total, abstained=len(abstained), judge=judge.name, calls=asdict(spent), tokens_here=here)


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's rows."""
    return recipe.deciding("seed", "rank")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {"sample": run.stage("sample").digest, **recipe.rank.judge.inputs()}
