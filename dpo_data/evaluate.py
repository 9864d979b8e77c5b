"""Did training help? Base and trained model answer the held-out prompts, and the recipe's judge scores both."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from dpo_data.config import Policy, Recipe
from dpo_data.errors import EmptyStage, Unfinished
from dpo_data.evaluation.perplexity import perplexity
from dpo_data.evaluation.schema import Perplexity
from dpo_data.evaluation.sides import engine, policies
from dpo_data.evaluation.summary import summary
from dpo_data.formats.prompts import Prompts, prompts_hash
from dpo_data.judging import judging, shown
from dpo_data.models import weights_revision
from dpo_data.progress import counted
from dpo_data.rows import Prompt, Ranking, Sample
from dpo_data.rundir import RunDir, Stage
from dpo_data.seams import Progress, answer


def evaluate(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Fill `5-evaluate` with base.parquet and trained.parquet, from the second round on last.parquet too (Sample rows),
    rank.parquet (all their answers in one Ranking a prompt) and perplexity.json. Returns the manifest, an Evaluation. Raises
    Unfinished where the judge awaits an answer."""
    sampled, trained = run.stage("sample"), run.stage("train")
    sampled.require()
    training = trained.require()
    stage = run.stage("evaluate").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    prompts = list(sampled.rows(Prompt, "held_out.parquet"))
    if not prompts:
        raise EmptyStage("No prompt is held out", "Raise prompts.holdout, or bring more prompts.")
    sides = policies(recipe, training, str(trained))
    samples = {who: _answers(recipe, policy, who, prompts, stage, progress) for who, policy in sides.items()}
    if not (stage.path / "rank.parquet").exists():
        stage.write("rank.parquet", _ranked(recipe, run, list(_together(samples)), progress), Ranking)
    told = _perplexity(recipe, sides, stage, progress)
    test_pairs = run.stage("pair").require()["test"] - training.get("test_too_long", 0)
    found = summary(samples, stage.rows(Ranking, "rank.parquet"), recipe.evaluate, training, told, test_pairs)
    return stage.finish(**found.model_dump(mode="json"))


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's result."""
    return recipe.deciding("seed", "prompts", "sample", "rank", "evaluate", "lineage")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    lineage, text = recipe.lineage, recipe.evaluate.perplexity
    return {
        **{name: run.stage(name).digest for name in ("sample", "train")},
        **recipe.rank.judge.inputs(),
        **({"base": weights_revision(Policy(lineage.base, lineage.revision, lineage.adapter))} if lineage else {}),
        **({"perplexity": prompts_hash(Prompts(path=text))} if text else {}),
    }


def _answers(recipe: Recipe, policy: Policy, who: str, prompts: list[Prompt], stage: Stage, progress: Progress) -> list[Sample]:
    """What one side answers, by the ids of the prompts."""
    if not (stage.path / f"{who}.parquet").exists():
        rows = []
        with closing(engine(recipe, policy).build()) as answering:
            sampling = {**recipe.sample.sampling, "n": recipe.evaluate.n}
            for row in counted(answer(answering, iter(prompts), sampling, recipe.seed), progress):
                rows.append(row)
                progress(f"evaluate {who}", len(rows), len(prompts))
        stage.write(f"{who}.parquet", sorted(rows, key=lambda row: row.prompt_id), Sample)
    return list(stage.rows(Sample, f"{who}.parquet"))


def _together(samples: Mapping[str, list[Sample]]) -> Iterator[Sample]:
    """One group a prompt with the answers of all sides, for the prompts that any could answer."""
    by_id = [{row.prompt_id: row for row in rows} for rows in samples.values()]
    for id, first in by_id[0].items():
        completions = [one for of_side in by_id for one in of_side[id].completions]
        if completions:
            yield replace(first, completions=completions, error=None)


def _ranked(recipe: Recipe, run: RunDir, groups: list[Sample], progress: Progress) -> list[Ranking]:
    """What the judge makes of each group, by the ids of the prompts."""
    rankings = []
    with judging(recipe, run, "evaluate") as (judge, _):
        for row in counted(judge.rank(shown(groups, recipe.rank.thinking)), progress):
            rankings.append(row)
            progress("evaluate rank", len(rankings), len(groups))
    rankings.sort(key=lambda row: row.prompt_id)
    missing = {group.prompt_id for group in groups} - {row.prompt_id for row in rankings}
    if missing:
        told = f"{len(groups) - len(missing)} of {len(groups)} held-out prompts are ranked"
        raise Unfinished(told, "Run again to collect the others.")
    return rankings


def _perplexity(recipe: Recipe, sides: Mapping[str, Policy], stage: Stage, progress: Progress) -> Perplexity | None:
    if recipe.evaluate.perplexity is None:
        return None
    path = stage.path / "perplexity.json"
    if not path.exists():
        stage.write_text(path.name, perplexity(recipe.evaluate.perplexity, sides, progress).model_dump_json(indent=1))
    return Perplexity.model_validate_json(path.read_text())
