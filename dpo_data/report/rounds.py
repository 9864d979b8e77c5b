"""What the rounds of a run came to: rounds.json for programs, rounds.html for people, and the last words of a command."""

import json

from dpo_data.config import Recipe, dump
from dpo_data.evaluation.schema import Estimate
from dpo_data.report import page
from dpo_data.report.plots import rounds_svg
from dpo_data.rounds import Rounds, points, summary
from dpo_data.rundir import RunDir


def report_rounds(recipe: Recipe, run: RunDir) -> Rounds:
    """Write rounds.json and rounds.html, and the whole recipe, above the run directories of the rounds."""
    told = summary(recipe, run)
    run.write("recipe.toml", dump(recipe))
    run.write("rounds.json", told.model_dump_json(indent=1))
    run.write("rounds.html", _page(told))
    return told


def rounds_words(run: RunDir) -> str:
    """What a command prints at its end: a line a round, the best one, and why no further one follows."""
    told = Rounds.model_validate(json.loads((run.path / "rounds.json").read_text()))
    rows = [("round", "gain over the base, and over the model it began with, in points of win rate")]
    for one in told.rounds:
        gains = ", ".join(points(gain) for gain in (one.over_base, one.over_last) if gain)
        rows.append((f"{one.round}", gains if one.complete else "is not evaluated" if one.closed else "is not complete"))
    rows.append(("best", f"round {told.best}" if told.best else "none: the first did not pass"))
    if told.stopped:
        rows.append(("stopped", told.stopped))
    rows.append(("report", f"{run}/rounds.html"))
    return "\n".join(f"{name:<9}{value}" for name, value in rows)


def _page(told: Rounds) -> str:
    """rounds.html."""
    gains: list[tuple[int, Estimate]] = [(one.round, one.over_base) for one in told.rounds if one.over_base]
    return page("rounds.html.j2", {"rounds": rounds_svg(gains)} if gains else {}, told=told, points=points)
