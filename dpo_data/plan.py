"""What a recipe would do, and what that costs, counted without doing it."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from dpo_data import estimate
from dpo_data.admission import Admission, admit
from dpo_data.config import Recipe
from dpo_data.engines.given import Given
from dpo_data.estimate import People, Tokens, Use
from dpo_data.formats.prompts import read_given
from dpo_data.hints import hints, pair_stats
from dpo_data.pipeline import stages_of
from dpo_data.report import duration
from dpo_data.rows import Completion, Prompt, Sample, answered, content_id, in_share
from dpo_data.rundir import RunDir


def plan(recipe: Recipe, run: RunDir) -> str:
    """Prompts, completions, judge calls, tokens, money and time, the stages to do, and hints about training, as text."""
    counts = count(recipe, run)
    done = [name for name in stages_of(recipe) if run.stage(name).manifest]
    todo = [name for name in stages_of(recipe) if name not in done]
    given = isinstance(recipe.sample.engine, Given)
    how = "(as given)" if given else f"(n = {recipe.sample.n})"
    lost = {name: counts[name] for name in ("near_duplicates", "contaminated", "other_rounds") if counts.get(name)}
    more = "".join(f", {lost_to:,} {name.replace('_', '-')}" for name, lost_to in lost.items())
    unused = f"{counts['held_out']:,} more held out, {counts['duplicates']:,} repeated{more}"
    lines = [
        f"{recipe.name}: {run}",
        f"  prompts      {counts['prompts']:>12,} ({unused})",
        f"  completions  {counts['completions']:>12,} {how}",
        f"  judge calls  {counts['judge_calls']:>12,} at most ({recipe.rank.judge.type})",
        *(
            line
            for stage in ("sample", "rank", "evaluate")
            if stage in todo
            for line in (*_told(recipe, run, stage, counts["use"]), *_people(stage, counts["people"]))
        ),
        f"  shards       {counts['shards']:>12,} of {recipe.sample.shard_size} prompts",
        f"  finished     {', '.join(done) or 'nothing yet'}",
        f"  to do        {', '.join(todo) or 'nothing'}",
        *(f"  hint         {hint}" for hint in hints(recipe, pair_stats(recipe, run))),
    ]
    return "\n".join(lines)


def count(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """The numbers behind `plan`: what becomes of the prompts, as in the sample stage's manifest; how many completions, judge
    calls at most, and shards; by stage, in `use` what each model reads and writes, and in `people` what these are shown."""
    admitted = admit(recipe)
    prompts = admitted.counts["prompts"]
    answers = admitted.answers or {recipe.sample.n: prompts}
    sides = 3 if recipe.lineage and recipe.lineage.round > 1 else 2
    asked = sides * recipe.evaluate.n
    few = list(_few(admitted.sampled(), prompts))
    held_out = list(_few(admitted.held_out(), admitted.counts["held_out"])) if "evaluate" in stages_of(recipe) else []
    both = estimate.imagined(held_out, asked, recipe.sample.max_tokens)
    return {
        **admitted.counts,
        "completions": sum(n * of for n, of in answers.items()),
        "judge_calls": sum(of * recipe.rank.judge.calls(n) for n, of in answers.items()),
        "shards": -(-prompts // recipe.sample.shard_size),
        "use": {
            "sample": estimate.sampling(recipe, few, prompts),
            "rank": estimate.judging(recipe, _answered(recipe, run, admitted, few), prompts),
            "evaluate": estimate.judging(recipe, both, admitted.counts["held_out"]),
        },
        "people": {
            "rank": list(estimate.people(recipe.rank.judge, answers)),
            "evaluate": list(estimate.people(recipe.rank.judge, {asked: admitted.counts["held_out"]})),
        },
    }


def _few(prompts: Iterator[Prompt], of: int) -> Iterator[Prompt]:
    return (one for one in prompts if in_share(one.prompt_id, estimate.FEW / max(1, of), "plan"))


def _answered(recipe: Recipe, run: RunDir, admitted: Admission, few: list[Prompt]) -> list[Sample]:
    """A few prompts with their answers: those that were sampled or given, else imagined ones as long as they may be."""
    sampled = run.stage("sample")
    if sampled.manifest:
        return [row for row in islice(sampled.rows(Sample), estimate.FEW) if not row.error]
    if not admitted.answers:
        return estimate.imagined(few, recipe.sample.n, recipe.sample.max_tokens)
    return [answered(prompt, _given(prompt, answers)) for prompt, answers in islice(read_given(recipe.prompts), estimate.FEW)]


def _given(prompt: Prompt, answers: list[Any]) -> list[Completion]:
    return [
        Completion(content_id([prompt.prompt_id, at]), at, one.text, one.finish_reason, one.n_tokens, None, one.model)
        for at, one in enumerate(answers)
    ]


def _people(stage: str, people: dict[str, list[People]]) -> Iterator[str]:
    """A line a judge through which people answer: they are what there is least of."""
    for one in people.get(stage, []):
        slice = f", about {one.calibration:,} of them for calibration" if one.calibration else ""
        yield f"  {stage:<8} {one.prompts:>16,} prompts to people at most{slice}: {one.records:,} records ({one.type})"


def _told(recipe: Recipe, run: RunDir, stage: str, uses: dict[str, Use]) -> Iterator[str]:
    """A line a model: tokens, and what they cost; then how long the stage takes, if that was ever measured."""
    use = uses[stage]
    for model, of in use.items():
        price = recipe.prices.get(model)
        cost = f", {of.cost(price):,.2f} by [prices]" if price else ""
        yield f"  {stage:<8} {of.read:>16,.0f} tokens in, {of.written:,.0f} out at most{cost} ({model})"
    if use and stage != "evaluate":
        table = recipe.sample.engine if stage == "sample" else recipe.rank.judge
        measured = estimate.speed(run, stage, table.deciding(*type(table).model_fields))
        total = sum(use.values(), Tokens())
        if measured:
            rate, where = measured
            tokens = total.written if stage == "sample" else total.read + total.written
            yield f"  {'':<8} {duration(tokens / rate):>16} at {rate:,.0f} tokens/s, as measured in {where}"
