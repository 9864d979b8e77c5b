"""Two runs side by side: what was asked of them otherwise, and what came of it. Reads both, and changes neither."""

import json
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np

from dpo_data.audit.figures import ratio
from dpo_data.config import Recipe, load
from dpo_data.errors import InputError
from dpo_data.evaluation.comparisons import compare as compared
from dpo_data.evaluation.comparisons import judgements, win_rate
from dpo_data.evaluation.figures import estimate
from dpo_data.evaluation.schema import Estimate
from dpo_data.evaluation.verdict import FEWEST
from dpo_data.judges.members import leaves
from dpo_data.lineage import best
from dpo_data.report import facts, gather, page
from dpo_data.report.changes import points
from dpo_data.report.evaluation import marked
from dpo_data.report.schema import Report
from dpo_data.report.settings import Difference, differences
from dpo_data.report.sides import NONE, Row, rows
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir

SHOWN = 8
"""How many held-out prompts are shown with both runs' answers."""

NAMES = ("name",)
"""Settings that change nothing but what a run is called."""

LONG = ("verdict", "what got worse")
"""Figures that are sentences, and so in no table of a terminal."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs, or of one with rounds the best of these. `name`: its folder's, with the round's behind it; or where
    both have the same, its path."""

    name: str
    run: RunDir
    recipe: Recipe
    report: Report


class Answers(NamedTuple):
    """What both trained models say first to a held-out prompt, with the judge's scores; None where it gave none."""

    prompt: list[dict[str, str]]
    one: str
    other: str
    score_one: float | None
    score_other: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`verdict`: whether the other's model is better than the one's, in words, with the interval. `prompts`: how many held-out
    prompts both have answered; `answers` are of a few of them, evenly spaced."""

    one: Side
    other: Side
    settings: list[Difference]
    rows: list[Row]
    verdict: str
    prompts: int
    answers: list[Answers]


def compare(one: RunDir, other: RunDir) -> Comparison:
    """What differs between two runs, each as far as it has come; of one with rounds, the best of these. Raises InputError where
    there is no such run, or no such round."""
    runs = [_picked(run) for run in (one, other)]
    names = [
        run.path.resolve().name + (f"/{picked.path.name}" if picked is not run else "")
        for run, picked in zip((one, other), runs, strict=True)
    ]
    if names[0] == names[1]:
        names = [str(run) for run in runs]
    left, right = (_side(name, run) for name, run in zip(names, runs, strict=True))
    both = _both(left.run, right.run)
    return Comparison(
        one=left,
        other=right,
        settings=differences(left.report.recipe, right.report.recipe),
        rows=rows(left.report, right.report),
        verdict=_verdict(left, right),
        prompts=len(both),
        answers=both[:: max(1, -(-len(both) // SHOWN))],
    )


def table(found: Comparison) -> str:
    """What a terminal shows: the settings that differ, a few figures in aligned columns, and the verdict."""
    differ = [one for one in found.settings if one.key not in NAMES]
    settings = [(one.key, *(shorten(_value(value), 40, placeholder=" …") for value in (one.one, one.other))) for one in differ]
    few = [(row.name, row.one, row.other) for row in found.rows if row.brief and row.name not in LONG]
    apart = [("", "", "")] if settings and few else []
    lines = [("", found.one.name, found.other.name), *settings, *apart, *few]
    width, left = (max(len(line[at]) for line in lines) for at in (0, 1))
    told = [f"{name:<{width}}   {one:<{left}}   {other}".rstrip() for name, one, other in lines]
    return "\n".join([*told, f"{'verdict':<{width}}   {found.verdict}"])


def html(found: Comparison) -> str:
    """All of it, with plots, as one page that loads nothing."""
    from dpo_data.report.plots import ACCENT, MUTED, outlines_svg, overlaid_svg

    sides, looks = (found.one, found.other), ((MUTED, 0.28), (ACCENT, 0.22))
    plots = overlaid_svg({side.name: facts.history(side.run) for side in sides})
    lengths = [
        (side.name, facts.pairs(side.run)[0].chosen.values, colour, fill)
        for side, (colour, fill) in zip(sides, looks, strict=True)
        if side.report.pairs
    ]
    if lengths:
        plots["lengths"] = outlines_svg(lengths, "words of a chosen answer")
    return page(
        "compare.html.j2",
        plots,
        one=found.one,
        other=found.other,
        settings=[(each.key, _value(each.one), _value(each.other)) for each in found.settings],
        parts={part: [row for row in found.rows if row.part == part] for part in dict.fromkeys(row.part for row in found.rows)},
        verdict=found.verdict,
        won=[(side.name, gain) for side in sides if (gain := _gain(side))],
        prompts=found.prompts,
        answers=[(one, marked(one.one, one.other)) for one in found.answers],
    )


def _picked(run: RunDir) -> RunDir:
    """The run itself, or of one with rounds the best of these."""
    found = best(run)
    if found is None:
        raise InputError(f"{run} has rounds, and none of them is its best", f"Name one, as {run.round(1)}.")
    return found


def _side(name: str, run: RunDir) -> Side:
    file = run.path / "recipe.toml"
    if not file.is_file():
        raise InputError(f"No run with a finished stage at {run}", "Name a run directory, as runs/demo.")
    recipe = load(file)
    return Side(name, run, recipe, gather(recipe, run)[0])


def _verdict(one: Side, other: Side) -> str:
    """Whose model is better, by their win rates against the base, over the held-out prompts of both. These can be held against
    each other where the judge and the base are the same."""
    missing = [side.name for side in (one, other) if not side.report.evaluate]
    if missing:
        return f"unknown: {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not evaluated"
    for what, of in (("judges", _judge), ("bases", _base)):
        if of(one) != of(other):
            return f"unknown: their {what} are not the same, so a win of the one is not a win of the other"
    left, right = _wins(one.run), _wins(other.run)
    ids = sorted(left.keys() & right.keys())
    found = estimate(np.array([(right[id] - left[id], 1.0) for id in ids]).reshape(-1, 2), ratio)
    if found is None or found.low is None or found.high is None or len(ids) < FEWEST:
        return f"unknown: {len(ids)} held-out prompts that both were compared on are too few to tell"
    first, second, by = other.name, one.name, found
    if found.high < 0:
        first, second, by = one.name, other.name, Estimate(value=-found.value, low=-found.high, high=-found.low)
    said = f"{first} is better" if by.low and by.low > 0 else "neither is shown to be better"
    more = points(by.model_dump(), digits=1)
    return f"{said}: of the comparisons with the base, {first} wins {more} more than {second}, on {len(ids):,} prompts"


def _judge(side: Side) -> Any:
    """What decided the judge's scores: its settings, and hashes of its prompt, rule or model. Where it has no engine of its
    own, the model that sampled did: by its hash, or by its name where its weights are not here, and its chat template."""
    begun, sampled = (side.run.stage(name).recipe for name in ("rank", "sample"))
    assert begun is not None and sampled is not None  # it is evaluated
    inputs = {name: value for name, value in begun["inputs"].items() if name != "sample"}
    borrows = any(getattr(judge, "engine", judge) is None for _, judge in leaves(side.recipe.rank.judge, "rank.judge"))
    engine, read = sampled["settings"]["sample"]["engine"], sampled["inputs"]
    sampler = (read["model"] or engine.get("model"), read["chat_template"]) if borrows else None
    return begun["settings"]["rank"], inputs, sampler


def _base(side: Side) -> Any:
    """Which weights `base` is in the evaluation: in a later round those that the first began with, else what was trained."""
    evaluate, train = (side.run.stage(name).recipe or {"inputs": {}} for name in ("evaluate", "train"))
    return evaluate["inputs"].get("base") or train["inputs"].get("model")


def _wins(run: RunDir) -> dict[str, float]:
    """The share of comparisons with the base that the trained model wins, of each prompt in which there is one."""
    stage = run.stage("evaluate")
    rankings = list(stage.rows(Ranking, "rank.parquet"))
    base, trained = (judgements(stage.rows(Sample, f"{who}.parquet"), rankings) for who in ("base", "trained"))
    ids = [id for id, mine in trained.items() if mine and base[id]]
    return {id: win_rate([of_prompt]) for id, of_prompt in zip(ids, compared(trained, base), strict=True) if of_prompt}


def _both(one: RunDir, other: RunDir) -> list[Answers]:
    """The held-out prompts that both trained models have answered, in the order of their ids."""
    if not all(run.stage("evaluate").manifest for run in (one, other)):
        return []
    left, right = _first_answers(one), _first_answers(other)
    return [
        Answers(facts.shown_turns(row.prompt), facts.shown(mine), facts.shown(theirs), score_mine, score_theirs)
        for id, (row, mine, score_mine) in sorted(left.items())
        if id in right
        for _, theirs, score_theirs in [right[id]]
    ]


def _first_answers(run: RunDir) -> dict[str, tuple[Sample, str, float | None]]:
    """The trained model's first answer to each held-out prompt that it could answer, and its score."""
    stage = run.stage("evaluate")
    rankings = stage.rows(Ranking, "rank.parquet")
    scores = {id: score for row in rankings for id, score in zip(row.completion_ids, row.scores, strict=True)}
    return {
        row.prompt_id: (row, row.completions[0].text, scores.get(row.completions[0].completion_id))
        for row in stage.rows(Sample, "trained.parquet")
        if row.completions
    }


def _gain(side: Side) -> Estimate | None:
    """The trained model's win rate against the base, with its interval."""
    gain = side.report.evaluate and side.report.evaluate.gain.over_base
    if not gain:
        return None
    return Estimate(
        **{
            end: None if value is None else value + 0.5
            for end, value in gain.model_dump(include={"value", "low", "high"}).items()
        }
    )


def _value(value: Any) -> str:
    """A setting as TOML has it, or nearly so; a dash for one that a recipe has not."""
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
