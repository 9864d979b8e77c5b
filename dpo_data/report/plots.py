"""Plots of a report: panels as SVG that takes its colours and its font from the page, and curves.png to send around."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

from dpo_data.report.schema import Histogram

INK, MUTED, ACCENT = "#1b1b1f", "#66666f", "#0b7a75"
"""The light page's colours. In an SVG each becomes the page's own variable, so a plot is legible on a dark page too."""
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", ACCENT: "var(--accent)"}

History = list[dict[str, Any]]
Draw = Callable[[Any], None]
"""Draws onto a matplotlib Axes."""

Line = tuple[str, str, str, str]
"""A metric of TRL's log, its label, its colour and its line style."""

PANELS: dict[str, list[Line]] = {
    "loss": [("loss", "loss", ACCENT, "-")],
    "rewards": [
        ("rewards/chosen", "chosen", ACCENT, "-"),
        ("rewards/rejected", "rejected", MUTED, "-"),
        ("rewards/margins", "margin", INK, ":"),
    ],
    "accuracy": [("rewards/accuracies", "accuracy", ACCENT, "-")],
    "log-probabilities": [("logps/chosen", "chosen", ACCENT, "-"), ("logps/rejected", "rejected", MUTED, "-")],
}
"""What the training curves show, a panel each; a ring is the same metric on the test pairs."""


def curves_png(history: History) -> bytes:
    """All training curves in one picture, on white."""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 6.6), dpi=150, layout="constrained")
        for axes, title in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            _curve(history, title)(axes)
            axes.set_title(title.capitalize(), loc="left", fontsize=11, color=INK)
            axes.set_xlabel("step")
        picture = BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
        return picture.getvalue()


def curves_svg(history: History) -> dict[str, str]:
    """The training curves as SVG, by title; only those that the log holds."""
    logged = {name for entry in history for name in entry}
    return {
        title: _svg(_curve(history, title), "step")
        for title, lines in PANELS.items()
        if any(name in logged for name, *_ in lines)
    }


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
    """How long chosen and rejected answers are: two outlines over the same bins."""
    ordered = sorted([*chosen, *rejected])
    low, high = ordered[0], ordered[round(0.99 * (len(ordered) - 1))] + 1
    step = max(1, round((high - low) / 24))
    edges = [low + at * step for at in range(int((high - low) // step) + 2)]

    def draw(axes: Any) -> None:
        for name, values, colour, fill in (("rejected", rejected, MUTED, 0.28), ("chosen", chosen, ACCENT, 0.22)):
            shares = [0.0] * (len(edges) - 1)
            for value in values:
                shares[min(len(shares) - 1, int((value - low) // step))] += 1 / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=fill, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=name)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right", reverse=True)
        _shares_on_y(axes)

    return _svg(draw, label)


def _shares_on_y(axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _curve(history: History, title: str) -> Draw:
    def draw(axes: Any) -> None:
        for metric, label, colour, style in PANELS[title]:
            steps, values = _points(history, metric)
            axes.plot(steps, values, style, color=colour, linewidth=1.6, label=label, marker="." if len(steps) == 1 else None)
            axes.plot(*_points(history, f"eval_{metric}"), "o", color=colour, markerfacecolor="none", markersize=6)
        if title == "accuracy":
            axes.set_ylim(0, 1.04)
            _shares_on_y(axes)
        if len(PANELS[title]) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="upper left" if title == "rewards" else "lower left")

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
