"""Every prompt is answered N times, at fixed settings, and streamed into shards."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from dpo_data.config import Recipe
from dpo_data.dedup import distinct
from dpo_data.errors import EmptyStage, EngineError, TooManyFailures
from dpo_data.formats.prompts import is_held_out, prompts_hash, read_prompts
from dpo_data.models import engine_revision
from dpo_data.rows import DroppedPrompt, Prompt, Sample, batched
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress, answer


def sample(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Fill `1-sample` with Sample rows, a row a prompt that is not held out. Returns the manifest."""
    stage = run.stage("sample")
    stage.open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    counts, repeated = _count(recipe)
    engine = recipe.sample.engine.build()
    with closing(engine):
        progress("sample", 0, counts["prompts"])
        missing = stage.fill(
            enumerate(batched(_kept(recipe), recipe.sample.shard_size)),
            lambda prompts: answer(engine, prompts, recipe.sample.sampling, recipe.seed),
            Sample,
            lambda rows: progress("sample", rows, counts["prompts"]),
        )
    if missing:
        raise EngineError(f"The engine gave no answer for {missing} prompts", "Run again to ask for those alone.")
    failed = [error for error in stage.column("error") if error]
    if len(failed) > recipe.sample.max_failed * counts["prompts"]:
        raise TooManyFailures(
            f"{len(failed)} of {counts['prompts']} prompts could not be sampled; the first: {failed[0]}",
            f"Mend the cause and delete {stage.path}, or raise sample.max_failed.",
        )
    stage.write("dropped.parquet", repeated, DroppedPrompt)
    return stage.finish(
        **counts,
        failed=len(failed),
        model=engine.model,
        model_revision=engine_revision(recipe.sample.engine),
        sampling=recipe.sample.sampling,
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's rows."""
    return recipe.deciding("seed", "prompts", "sample")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {"prompts": prompts_hash(recipe.prompts.path), "model": engine_revision(recipe.sample.engine)}


def _count(recipe: Recipe) -> tuple[dict[str, int], list[DroppedPrompt]]:
    """Read all prompts once before an engine starts: a bad line is met now. The repeated ones come back with their reason."""
    counts = dict.fromkeys(("read", "duplicates", "held_out", "prompts"), 0)
    repeated: list[DroppedPrompt] = []
    prompts = recipe.prompts
    for row in distinct(read_prompts(prompts.path, prompts.limit)):
        counts["read"] += 1
        if isinstance(row, DroppedPrompt):
            counts["duplicates"] += 1
            repeated.append(row)
        else:
            counts["held_out" if is_held_out(row, prompts.holdout, recipe.seed) else "prompts"] += 1
    if not counts["prompts"]:
        raise EmptyStage(f"No prompt to sample in {recipe.prompts.path}", "Check the file, prompts.holdout and prompts.limit.")
    return counts, repeated


def _kept(recipe: Recipe) -> Iterator[Prompt]:
    """The prompts to sample: each once, the held-out ones not."""
    for row in distinct(read_prompts(recipe.prompts.path, recipe.prompts.limit)):
        if isinstance(row, Prompt) and not is_held_out(row, recipe.prompts.holdout, recipe.seed):
            yield row
