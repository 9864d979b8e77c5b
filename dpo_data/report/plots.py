"""Plots of a report: panels as SVG that takes its colours and its font from the page, and curves.png to send around."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from dpo_data.evaluation.schema import Estimate
from dpo_data.report.schema import Histogram

INK, MUTED, ACCENT, ALARM = "#1b1b1f", "#66666f", "#0b7a75", "#b3261e"
"""The light page's colours. In an SVG each becomes the page's own variable, so a plot is legible on a dark page too."""
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", ACCENT: "var(--accent)", ALARM: "var(--closed)"}

History = list[dict[str, Any]]
Draw = Callable[[Any], None]
"""Draws onto a matplotlib Axes."""

Marks = Mapping[int, str]
"""Steps to mark by an upright line, and its colour: ALARM where an alarm rang first, INK for the step that is kept."""

Line = tuple[str, str, str, str]
"""A metric of TRL's log, its label, its colour and its line style."""

BEFORE = "loss of the fine-tuning before"
"""The panel whose steps are not those of the others."""

PANELS: dict[str, list[Line]] = {
    "loss": [("loss", "loss", ACCENT, "-")],
    "accuracy": [("rewards/accuracies", "accuracy", ACCENT, "-")],
    "rewards": [
        ("rewards/chosen", "chosen", ACCENT, "-"),
        ("rewards/rejected", "rejected", MUTED, "-"),
        ("rewards/margins", "margin", INK, ":"),
    ],
    "log-probabilities": [("logps/chosen", "chosen", ACCENT, "-"), ("logps/rejected", "rejected", MUTED, "-")],
    "fall against the reference": [("chosen_drop", "chosen", ACCENT, "-"), ("rejected_drop", "rejected", MUTED, "-")],
    "KL from the reference": [("kl", "KL", ACCENT, "-")],
    "entropy": [("entropy", "entropy", ACCENT, "-")],
    "gradient norm": [("grad_norm", "gradient norm", ACCENT, "-")],
    BEFORE: [("sft/loss", "loss", ACCENT, "-")],
}
"""What the training curves show, a panel each; a ring is the same metric on the test pairs."""


OVERLAID = {
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "fall of the chosen against the reference": "chosen_drop",
    "KL from the reference": "kl",
    "gradient norm": "grad_norm",
}
"""The metrics in which two runs are compared, a panel each."""


def curves_png(history: History, marks: Marks = MappingProxyType({})) -> bytes:
    """All training curves in one picture, on white."""
    titles = _logged(history)
    with _style():
        from matplotlib.figure import Figure

        rows = max(1, math.ceil(len(titles) / 2))
        figure = Figure(figsize=(10, 3.3 * rows), dpi=150, layout="constrained")
        for axes, title in zip_longest(figure.subplots(rows, 2, squeeze=False).flat, titles):
            if title is None:
                axes.set_axis_off()
                continue
            _curve(history, title, marks)(axes)
            axes.set_title(title[0].upper() + title[1:], loc="left", fontsize=11, color=INK)
            axes.set_xlabel("step")
        picture = BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
        return picture.getvalue()


def curves_svg(history: History, marks: Marks = MappingProxyType({})) -> dict[str, str]:
    """The training curves as SVG, by title."""
    return {title: _svg(_curve(history, title, marks), "step") for title in _logged(history)}


def overlaid_svg(histories: Mapping[str, History]) -> dict[str, str]:
    """Two runs' training curves over each other as SVG, by title; a ring is the same metric on the test pairs. A run without a
    log has no curve."""

    def curve(metric: str) -> Draw:
        def draw(axes: Any) -> None:
            for (name, history), colour in zip(histories.items(), (MUTED, ACCENT), strict=False):
                if not history:
                    continue
                axes.plot(*_points(history, metric), "-", color=colour, linewidth=1.6, label=name.replace("$", r"\$"))
                axes.plot(*_points(history, f"eval_{metric}"), "o", color=colour, markerfacecolor="none", markersize=6)
            axes.legend(frameon=False, labelcolor=INK)

        return draw

    logged = {name for history in histories.values() for entry in history for name in entry}
    return {title: _svg(curve(metric), "step") for title, metric in OVERLAID.items() if metric in logged}


def _logged(history: History) -> list[str]:
    """The panels of which the log holds anything."""
    logged = {name for entry in history for name in entry}
    return [title for title, lines in PANELS.items() if any(name in logged for name, *_ in lines)]


def histogram_svg(histogram: Histogram, label: str) -> str:
    """Bars of a histogram's shares."""

    def draw(axes: Any) -> None:
        widths = [right - left for left, right in zip(histogram.edges, histogram.edges[1:], strict=False)]
        axes.bar(
            histogram.edges[:-1], histogram.shares, [0.88 * width for width in widths], align="edge", color=ACCENT, linewidth=0
        )
        _shares_on_y(axes)

    return _svg(draw, label)


def lengths_svg(chosen: list[float], rejected: list[float], label: str) -> str:
    """How long chosen and rejected answers are."""
    return outlines_svg([("rejected", rejected, MUTED, 0.28), ("chosen", chosen, ACCENT, 0.22)], label)


def outlines_svg(outlines: Sequence[tuple[str, list[float], str, float]], label: str) -> str:
    """Distributions as outlines over the same bins: each one's name, values, colour, and how dense its fill is (0–1)."""
    ordered = sorted(value for _, values, *_ in outlines for value in values)
    low, high = ordered[0], ordered[round(0.99 * (len(ordered) - 1))] + 1
    step = max(1, round((high - low) / 24))
    edges = [low + at * step for at in range(int((high - low) // step) + 2)]

    def draw(axes: Any) -> None:
        for name, values, colour, fill in outlines:
            shares = [0.0] * (len(edges) - 1)
            for value in values:
                shares[min(len(shares) - 1, int((value - low) // step))] += 1 / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=fill, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=name.replace("$", r"\$"))
        axes.legend(frameon=False, labelcolor=INK, loc="upper right", reverse=True)
        _shares_on_y(axes)

    return _svg(draw, label)


def rounds_svg(gains: list[tuple[int, Estimate]]) -> str:
    """The win rate against the base by round, from ½ before the first one, each with its interval where it has one."""

    def draw(axes: Any) -> None:
        rounds, rates = [number for number, _ in gains], [0.5 + gain.value for _, gain in gains]
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([0, *rounds], [0.5, *rates], "-", color=ACCENT, linewidth=1.6, alpha=0.5)
        axes.plot(rounds, rates, "o", color=ACCENT, markersize=6)
        for number, gain in gains:
            if gain.low is not None and gain.high is not None:
                axes.plot([number, number], [0.5 + gain.low, 0.5 + gain.high], "-", color=ACCENT, linewidth=1.6)
        axes.set_xticks([0, *rounds], ["base", *map(str, rounds)])
        axes.set_xlim(-0.3, max(rounds) + 0.3)
        _shares_on_y(axes)

    return _svg(draw, "round")


def _shares_on_y(axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _curve(history: History, title: str, marks: Marks) -> Draw:
    def draw(axes: Any) -> None:
        for step, colour in marks.items() if title != BEFORE else ():
            axes.axvline(step, color=colour, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for metric, label, colour, style in PANELS[title]:
            steps, values = _points(history, metric)
            axes.plot(steps, values, style, color=colour, linewidth=1.6, label=label, marker="." if len(steps) == 1 else None)
            axes.plot(*_points(history, f"eval_{metric}"), "o", color=colour, markerfacecolor="none", markersize=6)
        if title == "accuracy":
            axes.set_ylim(0, 1.04)
            _shares_on_y(axes)
        if len(PANELS[title]) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="lower left" if title == "log-probabilities" else "upper left")

    return draw


def _points(history: History, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric; NaN, which leaves a gap, for infinity too."""
    found = [(entry["step"], entry[metric]) for entry in history if metric in entry]
    return [step for step, _ in found], [value if math.isfinite(value) else math.nan for _, value in found]


def _svg(draw: Draw, label: str) -> str:
    """One panel, without size, so that the page decides; its colours are the page's variables."""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(label)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


@contextmanager
def _style() -> Iterator[None]:
    """Thin muted axes, few ticks, text as text, and the same bytes each time."""
    import matplotlib

    plain: Any = {
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "dpo-data",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": MUTED,
        "grid.alpha": 0.22,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(plain):
        yield
