"""Two runs' figures beside each other, in words: a row a figure that either has."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpo_data.audit.schema import Agreement, Figure
from dpo_data.numbers import duration, number, percent
from dpo_data.report import LABELS
from dpo_data.report.changes import changes
from dpo_data.report.schema import Report

NONE = "–"
"""What stands for a figure that a run has not."""

Told = Iterator[tuple[str, str]]
"""Names of figures, and the figures."""


class Row(NamedTuple):
    """`part`: the part of a report that the figure is of. `brief`: whether it is one of the few that a terminal shows."""

    part: str
    name: str
    one: str
    other: str
    brief: bool


def rows(one: Report, other: Report) -> list[Row]:
    """The parts in their order; in each the figures of the one, and behind them those that the other alone has. What became of
    no prompt in either run is left out."""
    found = []
    for part, tell in PARTS.items():
        left, right = dict(tell(one)), dict(tell(other))
        for name in [*left, *(name for name in right if name not in left)]:
            brief = name in BRIEF or part == "evaluation"
            row = Row(part, name, left.get(name, NONE), right.get(name, NONE), brief)
            if part != "prompts" or {row.one, row.other} - {"0", NONE}:
                found.append(row)
    return found


BRIEF = {
    "pairs to train on", "chosen is the longer one", "it abstains", "two answers score the same",
    "its verdict changes with the order", "accuracy on test pairs", "fall of the chosen against the reference", "alarms",
}  # fmt: skip
"""What a terminal shows, besides the evaluation."""


def _prompts(report: Report) -> Told:
    """Where every prompt went. A filter's name may stand for prompts, and further on for pairs."""
    seen: set[str] = set()
    for step in report.funnel:
        name = LABELS.get(step.name, step.name) if step.kind != "part" else f"pairs {LABELS.get(step.name, step.name)}"
        yield f"{name}, of the pairs" if name in seen else name, f"{step.count:,}"
        seen.add(name)


def _pairs(report: Report) -> Told:
    if report.lengths:
        unit, of = ("tokens", report.lengths.tokens) if report.lengths.tokens else ("words", report.lengths.words)
        yield f"{unit} of a chosen answer, mean", number(of.chosen.mean)
        yield f"{unit} of a rejected answer, mean", number(of.rejected.mean)
        yield "chosen is the longer one", percent(of.chosen_longer)
    if report.scores and report.scores.margin:
        yield "margin of the scores, median", number(report.scores.margin.median)


def _judge(report: Report) -> Told:
    audit = report.audit
    if not audit:
        return
    yield "judge", audit.judge
    yield "it abstains", percent(audit.abstained)
    yield from _figure("two answers score the same", audit.ties)
    yield from _figure("the longer answer wins", audit.longer_wins)
    yield from _figure("scores go with length, τ-b", audit.length, _signed)
    for order in audit.order:
        of = f", {order.judge}" if len(audit.order) > 1 else ""
        yield from _figure(f"its verdict changes with the order{of}", order.flipped)
        yield from _figure(f"the answer shown first wins{of}", order.first_wins)
    for two in audit.members:
        yield from _figure(f"{two.judges[0]} and {two.judges[1]} agree, τ-b", two.agreement, _signed)
    if audit.people:
        yield from _agreement("judge and people agree, τ-b", audit.people.judge)
    if audit.annotation and audit.annotation.agreement:
        yield from _agreement("annotators agree, τ-b", audit.annotation.agreement)
    if audit.calls and audit.calls.calls:
        yield "calls", f"{audit.calls.calls:,}"
        yield "cost", number(audit.calls.cost)


def _training(report: Report) -> Told:
    train = report.train
    if not train:
        return
    yield "model", train.model
    yield "pairs trained on", f"{train.pairs:,}"
    yield "steps", f"{train.steps:,}"
    for name, key in (("first loss", train.first), ("last loss", train.last)):
        yield name, number(key.get("loss"))
    if train.held_out:
        yield "loss on test pairs", number(train.held_out.get("loss"))
        if (accuracy := train.held_out.get("rewards/accuracies")) is not None:
            yield "accuracy on test pairs", percent(accuracy)
    if train.chosen_drop is not None:
        yield "fall of the chosen against the reference", f"{number(train.chosen_drop)} nats a token"
    if train.kl is not None:
        yield "KL from the reference", f"{number(train.kl)} nats a token"
    yield "alarms", ", ".join(f"{alarm.name} at step {alarm.step}" for alarm in train.alarms) or "none"
    yield "time", duration(report.timings["train"])


def _evaluation(report: Report) -> Told:
    if not report.evaluate:
        return
    yield "held-out prompts", f"{report.evaluate.prompts:,}"
    for change in changes(report.evaluate.model_dump(mode="json")):
        yield change.name, f"{change.before} → {change.after}" + (f", {change.by}" if change.by else "")
    yield "verdict", report.evaluate.verdict
    yield "what got worse", "; ".join(report.evaluate.worse) or "nothing that was measured"


PARTS: dict[str, Callable[[Report], Told]] = {
    "evaluation": _evaluation,
    "training": _training,
    "judge": _judge,
    "pairs": _pairs,
    "prompts": _prompts,
}
"""What a comparison shows, part by part."""


def _figure(name: str, of: Figure | None, said: Callable[[float], str] = percent) -> Told:
    if of:
        interval = f" ({said(of.low)} to {said(of.high)})" if of.low is not None and of.high is not None else ""
        yield name, said(of.value) + interval


def _agreement(name: str, of: Agreement) -> Told:
    yield from _figure(name, of.tau, _signed)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
