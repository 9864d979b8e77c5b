"""A run's report: report.json for programs, report.html for people, and the last words of a command."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_data.audit import audit
from dpo_data.config import Recipe, dump
from dpo_data.gates import gates
from dpo_data.report import facts, schema
from dpo_data.rundir import FOLDERS, RunDir


def report(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Write report.json and report.html, and curves.png where there was training, at the run directory's top.

    Works on a run that is half done: what is not there is null. Returns what report.json holds (`schema.Report`). Raises
    DpoDataError where the run's counts do not add up.
    """
    from dpo_data.report.plots import curves_png

    manifests = {name: manifest for name in FOLDERS if (manifest := run.stage(name).manifest)}
    told, plots = _gather(recipe, run, manifests)
    if told.train:
        run.write("curves.png", curves_png(facts.history(run)))
    text = told.model_dump_json(indent=1)
    run.write("report.json", text)
    found: dict[str, Any] = json.loads(text)
    run.write("report.html", render(found, plots, dump(recipe)))
    return found


def render(report: dict[str, Any], plots: Mapping[str, str], recipe: str) -> str:
    """report.html: one page that loads nothing. `plots` are SVG by name; all other text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(percent=lambda share: percent(share).replace(" ", "\u00a0"), duration=duration, number=number)
    page.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
    page.filters.update(breakable=lambda text: Markup(re.sub(r"([:/_]|\.(?!\d))(?=\w)", r"\1<wbr>", str(escape(text)))))
    shown = {name: Markup(svg) for name, svg in plots.items()}
    return page.get_template("report.html.j2").render(
        report=report, plots=shown, recipe=recipe, headline=headlines(report)[:1], labels=LABELS
    )


def last_words(report: dict[str, Any], run: RunDir) -> str:
    """What a command prints at its end: a few aligned lines."""
    changes = [(name, percent(before), percent(after)) for name, before, after in headlines(report)]
    if sides := report["evaluate"]:
        changes.append(("words an answer", f"{sides['base']['words']:.1f}", f"{sides['trained']['words']:.1f}"))
    left, right = (max((len(change[at]) for change in changes), default=0) for at in (1, 2))
    rows = [(name, f"{before:>{left}} → {after:>{right}}") for name, before, after in changes]
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
    rows.append(("report", str(run.path / "report.html")))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}   {value}" for name, value in rows)


LABELS = {
    "read": "prompts read",
    "duplicate": "repeated",
    "near_duplicate": "nearly repeated",
    "contaminated": "overlap an evaluation set",
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


def percent(share: float) -> str:
    """A share (0–1) as whole per cent; a share that is neither none nor all never reads as 0 % or 100 %."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3.5 min, 2.1 h."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def number(value: float | None) -> str:
    """A number to four figures; None is what was not finite."""
    if value is None:
        return "not finite"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def _gather(recipe: Recipe, run: RunDir, manifests: dict[str, dict[str, Any]]) -> tuple[schema.Report, dict[str, str]]:
    """The report, and its plots as SVG by name."""
    from dpo_data.report.plots import curves_svg, histogram_svg, lengths_svg

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
    trained = _train(run, manifests["train"]) if "train" in manifests else None
    if trained:
        plots |= curves_svg(facts.history(run))
    evaluated = None
    if compared := manifests.get("evaluate"):
        sides = {who: schema.Side(**{k: compared[who].get(k) for k in schema.Side.model_fields}) for who in ("base", "trained")}
        evaluated = schema.Evaluate(prompts=compared["prompts"], **sides)
        examples.evaluate = facts.answers(run)
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
        gates=gates(recipe.gates, audited, made.train + made.test if made else None),
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


def _train(run: RunDir, manifest: dict[str, Any]) -> schema.Train:
    logged = [entry for entry in facts.history(run) if "loss" in entry]
    first, last = (facts.finite(entry) for entry in (logged[0], logged[-1])) if logged else ({}, {})
    known = {name: manifest[name] for name in schema.Train.model_fields if name in manifest}
    return schema.Train(**{**known, "held_out": facts.finite(manifest["held_out"]), "first": first, "last": last})
