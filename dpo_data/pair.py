"""Rankings become chosen/rejected pairs; whatever gives no pair is kept with its reason."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dpo_data.config import Pair, Recipe
from dpo_data.dedup import normalised
from dpo_data.errors import EmptyStage
from dpo_data.files import read_rows
from dpo_data.filters import FILTERS
from dpo_data.rows import Completion, DroppedPair, Message, PreferencePair, Ranking, Sample, in_share
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress
from dpo_data.tables import SCHEMAS, to_table

FILES: dict[str, type] = {"train.parquet": PreferencePair, "test.parquet": PreferencePair, "dropped.parquet": DroppedPair}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that may be chosen or rejected, with its score."""

    completion: Completion
    score: float


Strategy = Callable[[list[Candidate], Pair], tuple[Candidate, Candidate] | None]
"""Picks (chosen, rejected) among at least two candidates, the same whatever their order; None where nothing may be chosen."""


def pair(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Write train.parquet, test.parquet and dropped.parquet into `3-pair`. Returns the manifest, with the funnel's counts."""
    sampled, ranked = run.stage("sample"), run.stage("rank")
    total = sampled.require()["prompts"]
    ranked.require()
    stage = run.stage("pair").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    progress("pair", 0, total)
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with stage.writers({name: SCHEMAS[kind] for name, kind in FILES.items()}) as append:
        for path in sampled.shards():
            rankings = {row.prompt_id: row for row in _rankings(ranked.path / path.name)}
            made = [make_pair(row, rankings.get(row.prompt_id), recipe.pair) for row in read_rows(path, Sample)]
            pairs = [row for row in made if isinstance(row, PreferencePair)]
            test = [row for row in pairs if in_share(row.prompt_id, recipe.pair.test, f"test:{recipe.seed}")]
            held = {row.prompt_id for row in test}
            drops = [row for row in made if isinstance(row, DroppedPair)]
            append["train.parquet"](to_table([row for row in pairs if row.prompt_id not in held], PreferencePair))
            append["test.parquet"](to_table(test, PreferencePair))
            append["dropped.parquet"](to_table(drops, DroppedPair))
            counts.update(prompts=len(made), train=len(pairs) - len(test), test=len(test))
            dropped.update(row.filter for row in drops)
            progress("pair", counts["prompts"], total)
        if not counts["train"]:
            most = ", ".join(f"{n} {name}" for name, n in dropped.most_common(3))
            raise EmptyStage(
                f"No pair is left of {counts['prompts']} prompts ({most})", "Use another judge, or more completions."
            )
    return stage.finish(
        prompts=counts["prompts"], train=counts["train"], test=counts["test"], dropped=dict(dropped.most_common())
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's rows."""
    return recipe.deciding("seed", "pair")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {name: (run.stage(name).manifest or {}).get("digest") for name in ("sample", "rank")}


def best_worst(candidates: list[Candidate], settings: Pair) -> tuple[Candidate, Candidate] | None:
    """The highest score against the lowest. Among equals the completion's id decides, which knows no position and no length."""
    choosable = [c for c in candidates if c.completion.finish_reason != "length"]
    if not choosable:
        return None
    chosen = max(choosable, key=lambda c: (c.score, c.completion.completion_id))
    others = candidates if settings.reject_truncated else choosable
    rejectable = [c for c in others if c is not chosen and c.score <= chosen.score]
    rejected = min(rejectable, key=lambda c: (c.score, c.completion.completion_id), default=None)
    return (chosen, rejected) if rejected else None


STRATEGIES: dict[str, Strategy] = {"best_worst": best_worst}


def make_pair(sample: Sample, ranking: Ranking | None, settings: Pair) -> PreferencePair | DroppedPair:
    """A prompt's pair, or why there is none."""
    if sample.error:
        return _dropped(sample, ranking, "unsampled", sample.error)
    if ranking is None:
        return _dropped(sample, ranking, "unranked", "the judge gave no ranking")
    if ranking.abstained:
        return _dropped(sample, ranking, "abstained", ranking.abstained)
    candidates = _candidates(sample, ranking)
    if len(candidates) < 2:
        return _dropped(sample, ranking, "identical", "all judged answers are the same text")
    picked = STRATEGIES[settings.strategy](candidates, settings)
    if picked is None:
        return _dropped(sample, ranking, "truncated", "fewer than two answers are whole")
    pair = _pair(sample, ranking, *picked)
    for name, reason_to_drop in FILTERS.items():
        reason = reason_to_drop(pair)
        if reason:
            return DroppedPair(**{name: getattr(pair, name) for name in PreferencePair.__slots__}, filter=name, reason=reason)
    return pair


def _rankings(path: Path) -> Iterator[Ranking]:
    """A shard's rankings; none where no prompt of the shard could be sampled, so that there was nothing to rank."""
    return read_rows(path, Ranking) if path.exists() else iter(())


def _candidates(sample: Sample, ranking: Ranking) -> list[Candidate]:
    """The judged answers, each text once: answers that are equal but for case and white space share their mean score."""
    scores = dict(zip(ranking.completion_ids, ranking.scores, strict=True))
    same: dict[tuple[str, bool], list[Candidate]] = {}
    for completion in sample.completions:
        score = scores.get(completion.completion_id)
        if score is not None:
            key = normalised(completion.text), completion.finish_reason == "length"
            same.setdefault(key, []).append(Candidate(completion, score))
    return [
        Candidate(min((c.completion for c in group), key=lambda c: c.completion_id), fmean(c.score for c in group))
        for group in same.values()
    ]


def _pair(sample: Sample, ranking: Ranking, chosen: Candidate, rejected: Candidate) -> PreferencePair:
    return PreferencePair(
        prompt_id=sample.prompt_id,
        prompt=sample.prompt,
        chosen=_answer(chosen),
        rejected=_answer(rejected),
        chosen_id=chosen.completion.completion_id,
        rejected_id=rejected.completion.completion_id,
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        margin=chosen.score - rejected.score,
        n_tokens_chosen=chosen.completion.n_tokens,
        n_tokens_rejected=rejected.completion.n_tokens,
        judge=ranking.judge,
        model_chosen=chosen.completion.model,
        model_rejected=rejected.completion.model,
        source=sample.source,
        flags=[],
        tools=sample.tools,
    )


def _answer(candidate: Candidate) -> list[Message]:
    return [{"role": "assistant", "content": candidate.completion.text}]


def _dropped(sample: Sample, ranking: Ranking | None, filter: str, reason: str) -> DroppedPair:
    """A drop before there was a pair: its sides are not known."""
    known = dict(prompt_id=sample.prompt_id, prompt=sample.prompt, source=sample.source, tools=sample.tools, flags=[])
    unknown = dict.fromkeys(name for name in PreferencePair.__slots__ if name not in known)
    judge = ranking.judge if ranking else None
    return DroppedPair(**{**unknown, **known, "judge": judge}, filter=filter, reason=reason)
