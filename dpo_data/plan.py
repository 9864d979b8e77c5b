"""What a recipe would do, counted without doing it."""

from typing import Any

from dpo_data.admission import admit
from dpo_data.config import Recipe
from dpo_data.engines.given import Given
from dpo_data.pipeline import stages_of
from dpo_data.rundir import RunDir


def plan(recipe: Recipe, run: RunDir) -> str:
    """Prompts, completions, judge calls and the stages to do, as text."""
    counts = count(recipe)
    done = [name for name in stages_of(recipe) if run.stage(name).manifest]
    todo = [name for name in stages_of(recipe) if name not in done]
    given = isinstance(recipe.sample.engine, Given)
    how = "(as given)" if given else f"(n = {recipe.sample.n}), at most {counts['tokens']:,} tokens"
    lost = {name: counts[name] for name in ("near_duplicates", "contaminated") if counts[name]}
    more = "".join(f", {lost_to:,} {name.replace('_', '-')}" for name, lost_to in lost.items())
    unused = f"{counts['held_out']:,} more held out, {counts['duplicates']:,} repeated{more}"
    lines = [
        f"{recipe.name}: {run.path}",
        f"  prompts      {counts['prompts']:>9,} ({unused})",
        f"  completions  {counts['completions']:>9,} {how}",
        f"  judge calls  {counts['judge_calls']:>9,} ({recipe.rank.judge.type})",
        f"  shards       {counts['shards']:>9,} of {recipe.sample.shard_size} prompts",
        f"  finished     {', '.join(done) or 'nothing yet'}",
        f"  to do        {', '.join(todo) or 'nothing'}",
    ]
    return "\n".join(lines)


def count(recipe: Recipe) -> dict[str, Any]:
    """The numbers behind `plan`: what becomes of the prompts, as in the sample stage's manifest; and how many completions,
    tokens at most (0 where the answers are given), judge calls and shards."""
    admitted = admit(recipe)
    prompts = admitted.counts["prompts"]
    answers = admitted.answers or {recipe.sample.n: prompts}
    generated = 0 if admitted.answers else prompts * recipe.sample.n
    return {
        **admitted.counts,
        "completions": sum(n * of for n, of in answers.items()),
        "tokens": generated * recipe.sample.max_tokens,
        "judge_calls": sum(of * recipe.rank.judge.calls(n) for n, of in answers.items()),
        "shards": -(-prompts // recipe.sample.shard_size),
    }
