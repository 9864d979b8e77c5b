"""What a recipe would do, counted without doing it."""

from typing import Any

from dpo_data.config import Recipe
from dpo_data.dedup import distinct
from dpo_data.formats.prompts import is_held_out, read_prompts
from dpo_data.pipeline import stages_of
from dpo_data.rows import Prompt
from dpo_data.rundir import RunDir


def plan(recipe: Recipe, run: RunDir) -> str:
    """Prompts, completions, judge calls and the stages to do, as text."""
    counts = count(recipe)
    done = [name for name in stages_of(recipe) if run.stage(name).manifest]
    todo = [name for name in stages_of(recipe) if name not in done]
    lines = [
        f"{recipe.name}: {run.path}",
        f"  prompts      {counts['sampled']:>9,} ({counts['held_out']:,} more held out, {counts['duplicates']:,} repeated)",
        f"  completions  {counts['completions']:>9,} (n = {recipe.sample.n}), at most {counts['tokens']:,} tokens",
        f"  judge calls  {counts['judge_calls']:>9,} ({recipe.rank.judge.type})",
        f"  shards       {counts['shards']:>9,} of {recipe.sample.shard_size} prompts",
        f"  finished     {', '.join(done) or 'nothing yet'}",
        f"  to do        {', '.join(todo) or 'nothing'}",
    ]
    return "\n".join(lines)


def count(recipe: Recipe) -> dict[str, Any]:
    """The numbers behind `plan`: how many prompts, completions, judge calls and shards."""
    counts = dict.fromkeys(("sampled", "held_out", "duplicates"), 0)
    for row in distinct(read_prompts(recipe.prompts.path, recipe.prompts.limit)):
        if not isinstance(row, Prompt):
            counts["duplicates"] += 1
        else:
            counts["held_out" if is_held_out(row, recipe.prompts.holdout, recipe.seed) else "sampled"] += 1
    prompts = counts["sampled"]
    return {
        **counts,
        "completions": prompts * recipe.sample.n,
        "tokens": prompts * recipe.sample.n * recipe.sample.max_tokens,
        "judge_calls": prompts * recipe.rank.judge.calls(recipe.sample.n),
        "shards": -(-prompts // recipe.sample.shard_size),
    }
