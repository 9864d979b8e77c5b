"""Every prompt is answered N times, at fixed settings, and streamed into shards."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dpo_data import chat_template
from dpo_data.admission import Admission, admit, evaluation_hashes, lineage_inputs
from dpo_data.config import Recipe
from dpo_data.engines.given import Given
from dpo_data.engines.mix import Mix
from dpo_data.errors import EngineError, TooManyFailures
from dpo_data.files import read_rows, read_schema, read_table
from dpo_data.formats.prompts import prompts_hash, prompts_shape
from dpo_data.models import engine_revision
from dpo_data.progress import counted
from dpo_data.rows import DroppedPrompt, Prompt, Sample, batched
from dpo_data.rundir import PARTS, RunDir, Stage
from dpo_data.seams import Engine, Progress, Sampling, answer
from dpo_data.tables import SCHEMAS, SOMETIMES, to_table


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine's turn to answer every prompt: the folder that it fills, and the index of its first completion of a prompt."""

    stage: Stage
    engine: Any
    sampling: Sampling
    first: int = 0


def sample(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Fill `1-sample` with Sample rows, a row a prompt to sample; beside them held_out.parquet and dropped.parquet, the prompts
    that are kept for evaluate and those that are not used, with the reason. Returns the manifest."""
    stage = run.stage("sample").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        stage.sweep(PARTS)  # of who was killed as it finished
        return stage.manifest
    begun = any(stage.path.rglob("*.parquet"))
    admitted = admit(recipe)
    prompts, turns = admitted.counts["prompts"], _turns(recipe, stage)
    for at, turn in enumerate(turns):

        def done(rows: int, before: int = at * prompts) -> None:
            progress("sample", before + rows, len(turns) * prompts)

        _take(turn, recipe, stage, admitted, done, progress)
    if len(turns) > 1:
        _put_together(turns, stage)
    _set_aside(stage, admitted)
    return stage.finish(
        PARTS,
        shape=prompts_shape(recipe.prompts),
        **admitted.counts,
        reused=admitted.reused,
        failed=_failures(stage, recipe, admitted),
        **(facts := _facts(stage)),
        tokens_here=None if begun else facts["tokens"],
        model_revision=engine_revision(recipe.sample.engine),
        policy=_policy(stage),
        sampling={} if isinstance(recipe.sample.engine, Given) else recipe.sample.sampling,
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's rows."""
    return recipe.deciding("seed", "prompts", "sample")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    engine = recipe.sample.engine
    return {
        "prompts": prompts_hash(recipe.prompts),
        "model": engine_revision(engine),
        "chat_template": chat_template.of(engine),
        "evaluation": evaluation_hashes(recipe.prompts),
        **lineage_inputs(recipe),
    }


def _set_aside(stage: Stage, admitted: Admission) -> None:
    """Write down the prompts that are not sampled."""
    aside: dict[str, tuple[type, Iterator[Any]]] = {
        "dropped.parquet": (DroppedPrompt, admitted.dropped()),
        "held_out.parquet": (Prompt, admitted.held_out()),
    }
    with stage.writers({name: SCHEMAS[kind] for name, (kind, _) in aside.items()}) as append:
        for name, (kind, rows) in aside.items():
            for batch in batched(rows, 256):
                append[name](to_table(batch, kind))


def _turns(recipe: Recipe, stage: Stage) -> list[Turn]:
    """Who answers, one after the other. The engines of a mix fill a part of the stage each, so that what one has answered is on
    the disk before the next is loaded."""
    engine, sampling = recipe.sample.engine, recipe.sample.sampling
    if isinstance(engine, Mix):
        each = recipe.sample.n // len(engine.engines)
        return [Turn(stage.part(at), one, {**sampling, "n": each}, at * each) for at, one in enumerate(engine.engines)]
    return [Turn(stage, engine, {} if isinstance(engine, Given) else sampling)]


def _take(
    turn: Turn, recipe: Recipe, stage: Stage, admitted: Admission, done: Callable[[int], None], progress: Progress
) -> None:
    """Have an engine answer the prompts of every shard that is not there. It is not started where all of them are."""
    done(0)
    shards = range(-(-admitted.counts["prompts"] // recipe.sample.shard_size))
    todo = {at for at in shards if not turn.stage.shard(at).exists() and not stage.shard(at).exists()}
    if todo:
        given = isinstance(turn.engine, Given)
        engine: Engine = turn.engine.build(recipe.prompts) if given else turn.engine.build()
        with closing(engine):
            missing = turn.stage.fill(
                (
                    (at, prompts)
                    for at, prompts in enumerate(batched(admitted.sampled(), recipe.sample.shard_size))
                    if at in todo or turn.stage.shard(at).exists()
                ),
                lambda prompts: counted(answer(engine, prompts, turn.sampling, recipe.seed, turn.first), progress),
                Sample,
                done,
                _schema(engine),
            )
        if missing:
            raise EngineError(f"The engine gave no answer for {missing} prompts", "Run again to ask for those alone.")
    _failures(turn.stage, recipe, admitted)


def _put_together(turns: list[Turn], stage: Stage) -> None:
    """Make the stage's shards of its parts."""
    for name in [path.name for path in turns[0].stage.shards()]:
        if not (stage.path / name).exists():
            parts = [list(read_rows(turn.stage.path / name, Sample)) for turn in turns]
            stage.write(name, list(_joined(parts)), Sample)


def _joined(parts: list[list[Sample]]) -> Iterator[Sample]:
    """The same prompts' samples of several engines, joined by id. A prompt that one of them could not answer has failed."""
    others = [{row.prompt_id: row for row in part} for part in parts[1:]]
    for row in parts[0]:
        rows = [row, *(other[row.prompt_id] for other in others)]
        error = next((one.error for one in rows if one.error), None)
        yield replace(row, completions=[] if error else [c for one in rows for c in one.completions], error=error)


def _schema(engine: Engine) -> pa.Schema:
    """The schema of a shard, which notes how the engine that fills it computes log-probs, where it tells."""
    policy = getattr(engine, "policy", None)
    return SCHEMAS[Sample].with_metadata({"policy": json.dumps(policy)} if policy else None)


def _policy(stage: Stage) -> dict[str, Any] | None:
    """How all log-probs came about; None where an engine did not tell, or where the shards differ in it."""
    noted = {(read_schema(path).metadata or {}).get(b"policy") for path in stage.shards()}
    policy: dict[str, Any] | None = json.loads(next(iter(noted)) or "null") if len(noted) == 1 else None
    return policy


def _failures(stage: Stage, recipe: Recipe, admitted: Admission) -> int:
    """How many prompts could not be answered. Raises TooManyFailures."""
    failed = [error for error in stage.column("error") if error]
    if len(failed) > recipe.sample.max_failed * admitted.counts["prompts"]:
        raise TooManyFailures(
            f"{len(failed)} of {admitted.counts['prompts']} prompts could not be sampled; the first: {failed[0]}",
            f"Mend the cause and delete {stage}, or raise sample.max_failed.",
        )
    return len(failed)


def _facts(stage: Stage) -> dict[str, Any]:
    """Which models answered, how often; how many tokens they wrote; and whether any prompt or answer has tools, any prompt
    variables of its chat template."""
    models: Counter[str] = Counter()
    tools, kwargs, tokens = False, False, 0
    leaves = [
        *SOMETIMES,
        "prompt.list.element.tool_calls",
        "completions.list.element.tool_calls",
        "completions.list.element.model",
        "completions.list.element.n_tokens",
    ]
    for path in stage.shards():
        table = read_table(path, leaves)
        prompts, completions = (table[name].combine_chunks().flatten() for name in ("prompt", "completions"))
        models.update(completions.field("model").to_pylist())
        tokens += pc.sum(completions.field("n_tokens")).as_py() or 0
        calls = [table["tools"], prompts.field("tool_calls"), completions.field("tool_calls")]
        tools = tools or any(len(column) > column.null_count for column in calls)
        kwargs = kwargs or len(table) > table["chat_template_kwargs"].null_count
    columns = {"tools": tools, "chat_template_kwargs": kwargs}
    return {"model": ", ".join(models), "models": dict(models), "tokens": tokens, **columns}
