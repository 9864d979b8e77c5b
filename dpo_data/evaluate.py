"""Did training help? Base and trained model answer the held-out prompts, and the recipe's judge scores both."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from dpo_data.config import Recipe
from dpo_data.engines.mix import Mix
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import EmptyStage
from dpo_data.judging import judging, shown
from dpo_data.length_control import fit
from dpo_data.rows import Prompt, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress, answer
from dpo_data.templates import without_thinking


def evaluate(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Fill `5-evaluate` with base.parquet, trained.parquet (Sample rows) and rank.parquet (both models' answers in one Ranking
    a prompt). Returns the manifest, with a summary of each model."""
    sampled, trained = run.stage("sample"), run.stage("train")
    sampled.require()
    trained.require()
    stage = run.stage("evaluate").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    prompts = list(sampled.rows(Prompt, "held_out.parquet"))
    if not prompts:
        raise EmptyStage("No prompt is held out", "Raise prompts.holdout, or bring more prompts.")
    sampling = {**recipe.sample.sampling, "n": recipe.evaluate.n}
    samples: dict[str, list[Sample]] = {}
    for who, engine_settings in _engines(recipe, str(trained.path / "model")).items():
        if not (stage.path / f"{who}.parquet").exists():
            with closing(engine_settings.build()) as engine:
                rows = []
                for row in answer(engine, iter(prompts), sampling, recipe.seed):
                    rows.append(row)
                    progress(f"evaluate {who}", len(rows), len(prompts))
            stage.write(f"{who}.parquet", sorted(rows, key=lambda row: row.prompt_id), Sample)
        samples[who] = list(stage.rows(Sample, f"{who}.parquet"))
    if not (stage.path / "rank.parquet").exists():
        both = _both(samples["base"], samples["trained"])
        with judging(recipe, run, "evaluate") as (judge, _):
            rankings = sorted(judge.rank(shown(both, recipe.rank.thinking)), key=lambda row: row.prompt_id)
        stage.write("rank.parquet", rankings, Ranking)
    return stage.finish(
        prompts=len(prompts), **summary(samples, stage.rows(Ranking, "rank.parquet"), recipe.evaluate.thresholds)
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's result."""
    return recipe.deciding("seed", "prompts", "sample", "rank", "evaluate")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {
        **{name: run.stage(name).digest for name in ("sample", "train")},
        **recipe.rank.judge.inputs(),
    }


def summary(
    samples: dict[str, list[Sample]], rankings: Iterable[Ranking], thresholds: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """For base and trained: `score` (a share, 0–1), what it measures, the share of each threshold, mean words, share cut off.

    Without thresholds the score is the share of all (trained, base) answer pairs of a prompt that a model wins, ties as half,
    averaged over prompts. `win_rate_length_controlled`: what it would be between answers of the same length.
    """
    by_prompt = {row.prompt_id: dict(zip(row.completion_ids, row.scores, strict=True)) for row in rankings if not row.abstained}
    judgements = {who: [_judgements(row, by_prompt) for row in rows] for who, rows in samples.items()}
    comparisons = _comparisons(judgements["trained"], judgements["base"])
    wins, controlled = _win_rate(comparisons), _win_rate_length_controlled(comparisons)
    told: dict[str, dict[str, Any]] = {}
    for who, win, same_length in (
        ("base", 1 - wins, None if controlled is None else 1 - controlled),
        ("trained", wins, controlled),
    ):
        judged = [score for of_prompt in judgements[who] for score, _ in of_prompt]
        shares = {name: _share(score >= least for score in judged) for name, least in thresholds.items()}
        answers = [completion for row in samples[who] for completion in row.completions]
        told[who] = {
            "score": next(iter(shares.values()), win),
            "measure": f"share {next(iter(shares))}" if shares else "share of comparisons won",
            "shares": shares,
            "win_rate": win,
            "win_rate_length_controlled": same_length,
            "answers": len(answers),
            "judged": len(judged),
            "words": fmean(len(c.text.split()) for c in answers) if answers else 0.0,
            "cut_off": _share(c.finish_reason == "length" for c in answers),
        }
    return told


def _engines(recipe: Recipe, trained: str) -> dict[str, Vllm]:
    """The base and the trained model, with the sampling engine's own arguments where that is vLLM."""
    assert recipe.train is not None
    model, revision = recipe.base_model()
    sampler = recipe.sample.engine
    ours = [one for one in sampler.engines if getattr(one, "model", "") == model] if isinstance(sampler, Mix) else [sampler]
    args = next((one.args for one in ours if isinstance(one, Vllm)), {})
    base = Vllm(model=model, revision=revision, args=args)
    if recipe.train.method == "lora":
        return {"base": base, "trained": base.model_copy(update={"adapter": trained})}
    return {"base": base, "trained": Vllm(model=trained, args=args)}


def _both(base: list[Sample], trained: list[Sample]) -> Iterable[Sample]:
    """One group a prompt with both models' answers, for the prompts that both could answer."""
    of_trained = {row.prompt_id: row for row in trained}
    for row in base:
        other = of_trained[row.prompt_id]
        if not row.error and not other.error:
            yield replace(row, completions=row.completions + other.completions)


Judgement = tuple[float, int]
"""An answer's score, and its length in characters, without thinking."""

Comparison = tuple[float, int]
"""Whether ours wins (1, 0, or ½ for a tie), and how many characters longer it is."""


def _judgements(row: Sample, by_prompt: dict[str, dict[str, float | None]]) -> list[Judgement]:
    """Those of the answers that have a score."""
    scores = by_prompt.get(row.prompt_id, {})
    found = ((scores.get(one.completion_id), len(without_thinking(one.text))) for one in row.completions)
    return [(score, length) for score, length in found if score is not None]


def _comparisons(ours: list[list[Judgement]], theirs: list[list[Judgement]]) -> list[list[Comparison]]:
    """Each of ours with each of theirs, by prompt. Both lists are by prompt, in the same order; prompts where a side has no
    score do not count."""
    return [
        [((a > b) + (a == b) / 2, long - short) for a, long in mine for b, short in other]
        for mine, other in zip(ours, theirs, strict=True)
        if mine and other
    ]


def _win_rate(comparisons: list[list[Comparison]]) -> float:
    """Averaged over prompts. 0.5 where none counts."""
    return fmean(fmean(won for won, _ in of_prompt) for of_prompt in comparisons) if comparisons else 0.5


def _win_rate_length_controlled(comparisons: list[list[Comparison]]) -> float | None:
    """As `_win_rate`, if all answers were equally long. None where the lengths cannot tell."""
    wins = [won for of_prompt in comparisons for won, _ in of_prompt]
    differences = [longer for of_prompt in comparisons for _, longer in of_prompt]
    weights = [1 / len(of_prompt) for of_prompt in comparisons for _ in of_prompt]
    found = fit(np.array(wins), np.array(differences), np.array(weights))
    return found.win_rate if found else None


def _share(flags: Iterable[bool]) -> float:
    marks = list(flags)
    return sum(marks) / len(marks) if marks else 0.0
