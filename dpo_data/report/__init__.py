"""A run's report: report.json for programs, report.html for people, and the last words of a command."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_data.audit import audit
from dpo_data.config import Recipe, dump
from dpo_data.evaluation.schema import Evaluation
from dpo_data.files import refuse_links
from dpo_data.gates import gates
from dpo_data.hints import hints, pair_stats
from dpo_data.numbers import duration, number, percent
from dpo_data.report import evaluation, facts, schema, training
from dpo_data.report.changes import changes
from dpo_data.report.plots import PANELS
from dpo_data.rundir import FOLDERS, RunDir

__all__ = ["LABELS", "duration", "gather", "headlines", "last_words", "number", "page", "percent", "render", "report"]


def report(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Write report.json and report.html, and curves.png where there was training, at the run directory's top.

    Works on a run that is half done: what is not there is null. Returns what report.json holds (`schema.Report`). Raises
    DpoDataError where the run's counts do not add up.
    """
    from dpo_data.report.plots import curves_png

    refuse_links(run.path)
    told, plots = gather(recipe, run)
    if told.train:
        run.write("curves.png", curves_png(facts.history(run), training.marks(told.train)))
    text = told.model_dump_json(indent=1)
    run.write("report.json", text)
    found: dict[str, Any] = json.loads(text)
    run.write("report.html", render(found, plots, dump(recipe)))
    return found


def render(report: dict[str, Any], plots: Mapping[str, str], recipe: str) -> str:
    """report.html."""
    return page(
        "report.html.j2",
        plots,
        report=report,
        recipe=recipe,
        headline=headlines(report)[:1],
        labels=LABELS,
        panels=list(PANELS),
        by={change.name: change.by for change in changes(report["evaluate"])} if report["evaluate"] else {},
    )


def page(template: str, plots: Mapping[str, str], **told: Any) -> str:
    """A page of this folder's that loads nothing. `plots` are SVG by name; all other text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=lambda share: percent(share).replace(" ", "\u00a0"), duration=duration, number=number)
    pages.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
    pages.filters.update(marked=lambda example: evaluation.marked(example["base"], example["trained"]))
    pages.filters.update(breakable=lambda text: Markup(re.sub(r"([:/_]|\.(?!\d))(?=\w)", r"\1<wbr>", str(escape(text)))))
    return pages.get_template(template).render(plots={name: Markup(svg) for name, svg in plots.items()}, **told)


def last_words(report: dict[str, Any], run: RunDir) -> str:
    """What a command prints at its end: a few aligned lines."""
    shifts = [(name, percent(before), percent(after)) for name, before, after in headlines(report)]
    told = report["evaluate"]
    if told:
        shifts.append(("words an answer", f"{told['base']['words']:.1f}", f"{told['trained']['words']:.1f}"))
    left, right = (max((len(shift[at]) for shift in shifts), default=0) for at in (1, 2))
    rows = [(name, f"{before:>{left}} → {after:>{right}}") for name, before, after in shifts]
    if told:
        more = f"; and {len(told['worse']) - 1} more, in the report" if len(told["worse"]) > 1 else ""
        rows += [("verdict", told["verdict"]), ("got worse", told["worse"][0] + more if told["worse"] else "nothing measured")]
    if ended := training.ending(report["train"]):
        rows.append(("training", ended))
    if made := report["pairs"]:
        rows.append(("pairs", f"{made['train']:,} train, {made['test']:,} test"))
        dropped = ", ".join(f"{count:,} {name}" for name, count in made["dropped"].items())
        rows.append(("dropped", f"{sum(made['dropped'].values()):,}{f' ({dropped})' if dropped else ''}"))
    if warnings := report["audit"] and report["audit"]["warnings"]:
        rows.append(("warnings", f"{len(warnings)} about annotators, in the report"))
    waiting = [f"{name} {state['state']}" for name, state in report["stages"].items() if state["state"] == "begun"]
    if waiting:
        rows.append(("not finished", ", ".join(waiting)))
    if report["timings"]:
        rows.append(("time", duration(sum(report["timings"].values()))))
    rows.append(("report", f"{run}/report.html"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}   {value}" for name, value in rows)


LABELS = {
    "read": "prompts read",
    "duplicate": "repeated",
    "near_duplicate": "nearly repeated",
    "contaminated": "overlap an evaluation set",
    "other_round": "left to other rounds",
    "held_out": "held out for evaluation",
    "failed": "could not be sampled",
    "sampled": "sampled",
    "abstained": "judge could not decide",
    "ranked": "ranked",
    "unranked": "fewer than two scores",
    "identical": "the same text",
    "truncated": "fewer than two whole answers",
    "threshold": "no scores far enough apart",
    "paired": "gave a pair",
    "candidates": "pairs they gave",
    "tie": "both score the same",
    "margin": "margin too small",
    "near_identical": "nearly the same text",
    "empty": "chosen answer empty",
    "length": "too short or too long",
    "length_gap": "lengths too far apart",
    "repetition": "repeats itself",
    "refusal": "chosen answer refuses",
    "script": "wrong script",
    "private": "personal data or secrets",
    "fits": "too long to train on",
    "pairs": "pairs",
    "train": "to train on",
    "test": "for test",
}
"""The funnel's steps in plain words; a filter that is not here goes by its name."""


def headlines(report: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(name, share before, share after) of each threshold and of the comparisons won, the headline first."""
    if not report["evaluate"]:
        return []
    base, trained = report["evaluate"]["base"], report["evaluate"]["trained"]
    shares = [(name.replace("_", " "), share, trained["shares"][name]) for name, share in base["shares"].items()]
    return [*shares, ("comparisons won", base["win_rate"], trained["win_rate"])]


def gather(recipe: Recipe, run: RunDir) -> tuple[schema.Report, dict[str, str]]:
    """The report, and its plots as SVG by name. Writes nothing. Raises DpoDataError where the run's counts do not add up."""
    from dpo_data.report.plots import curves_svg, histogram_svg, lengths_svg

    manifests = {name: manifest for name in FOLDERS if (manifest := run.stage(name).manifest)}
    if "train" not in manifests:
        manifests.pop("evaluate", None)  # it tells of a model that is being made anew
    plots: dict[str, str] = {}
    examples = schema.Examples(pairs=[], evaluate=[])
    made, lengths, margin, scores = None, None, None, None
    if paired := manifests.get("pair"):
        dropped = Counter(paired["dropped_prompts"]) + Counter(paired["dropped_pairs"])
        made = schema.Pairs(train=paired["train"], test=paired["test"], dropped=dict(dropped.most_common()))
        words, tokens, margins, examples.pairs = facts.pairs(run)
        by_word, by_token, margin = words.summary(), tokens.summary(), margins.spread()
        assert by_word is not None  # the pair stage never completes without a pair
        lengths = schema.Lengths(words=by_word, tokens=by_token)
        unit, shown = ("tokens", tokens) if by_token else ("words", words)
        plots["lengths"] = lengths_svg(shown.chosen.values, shown.rejected.values, f"{unit} an answer")
    if ranked := manifests.get("rank"):
        scores = _scores(run, ranked["judge"], margin)
        if scores.histogram:
            plots["scores"] = histogram_svg(scores.histogram, "score")
    trained = training.training(run, manifests["train"]) if "train" in manifests else None
    if trained:
        plots |= curves_svg(facts.history(run), training.marks(trained))
    evaluated = None
    if compared := manifests.get("evaluate"):
        evaluated = Evaluation(**{name: compared[name] for name in Evaluation.model_fields})
        examples.evaluate = evaluation.examples(run)
    audited = audit(recipe, run)
    told = schema.Report(
        name=recipe.name,
        stages=facts.stages(run),
        funnel=facts.funnel(run),
        answers=_answers(manifests.get("sample")),
        pairs=made,
        lengths=lengths,
        scores=scores,
        audit=audited,
        gates=gates(
            recipe.gates,
            audited,
            made.train + made.test if made else None,
            manifests.get("train"),
            manifests.get("evaluate"),
        ),
        hints=hints(recipe, pair_stats(recipe, run)),
        train=trained,
        evaluate=evaluated,
        examples=examples,
        timings={name: manifest["seconds"] for name, manifest in manifests.items()},
        versions=facts.versions(manifests.values()),
        git_commit=[None, *(m["git_commit"] for m in manifests.values())][-1],
        recipe=recipe.model_dump(mode="json"),
    )
    return told, plots


def _answers(sampled: dict[str, Any] | None) -> schema.Answers | None:
    if not sampled or sampled["prompts"] == sampled["failed"]:
        return None
    return schema.Answers(prompts=sampled["prompts"] - sampled["failed"], models=sampled["models"])


def _scores(run: RunDir, judge: str, margin: schema.Spread | None) -> schema.Scores:
    numbers, unjudged = facts.scores(run)
    return schema.Scores(
        judge=judge,
        judged=numbers.count,
        unjudged=unjudged,
        spread=numbers.spread() if numbers.count else None,
        histogram=numbers.histogram() if numbers.count else None,
        margin=margin,
    )
