"""How training goes: figures and alarms made of TRL's log entries, which are dicts with `step`.

Accuracy and margin tell how far chosen and rejected answers are apart, and rise as well when both fall and the model gets worse
(arXiv 2402.13228, section 3; arXiv 2410.08847). So each entry is given the fall against the reference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

Entry = Mapping[str, Any]

LIVE = {"max_chosen_drop": "chosen_drop", "max_kl": "kl"}
"""The gates that hold while it trains, and the figure that each limits."""

WINDOW = 3
"""How many entries a trend is taken over: one entry is a few batches, and may hold hard pairs by chance."""
FALL = 0.25
"""Nats a token by which chosen answers may fall: at 0.25 each of their tokens is 22 % less likely than it was. In the demo,
good runs stay below 0, and at six times the learning rate they pass 1 within two logs."""
PLUNGE = 4 * FALL
"""Nats a token by which no single entry may show them fallen, however few there are: each token is 63 % less likely."""
LEAP = 0.1
"""Nats a token by which KL may rise from one entry to the next, however little it moved before. In the demo, good runs move by
0.02 at most, and bad ones by 0.14 or more."""
SUDDEN = 5.0
"""How many times the usual change of KL is a leap."""
LEARNT = 0.1
"""The part of the first loss at which the pairs have little left to teach: a pair's gradient is weighed by how wrong the model
still orders it (arXiv 2305.18290, section 4), and at a tenth of ln 2 that weight is 0.07, where it was 0.5 at first."""
COLLAPSED = 0.2
"""The part of the first entropy below which the model hardly chooses any more."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What rang, at which optimizer step. `value` is beyond `limit`; both are None where the loss is no number."""

    name: str
    step: int
    value: float | None
    limit: float | None
    said: str


def figures(entry: Entry, beta: float, first: Entry | None = None) -> dict[str, float]:
    """What an entry tells against the reference, in nats a token; named as its metrics are, `eval_` first on held-out pairs.

    `chosen_drop`, `rejected_drop`: how far the log-probability of these answers is below the reference's; negative where it
    rose. The sum over an answer's tokens of log π_ref − log π, averaged over the entry's pairs, by the tokens of an answer,
    averaged over the same pairs (`tokens/chosen`): so each token counts alike, and not each answer.

    `kl`: the same over the answers of both sides together. It is the plainest estimate of KL(reference ‖ policy) on samples of
    the reference (joschu.net/blog/kl-approx.html, k1), without bias where answers are drawn by the reference at random. These
    are not: the best and the worst of several are those that training pulls at, so it reads higher than on fresh samples where
    rejected answers fall far, and may be below 0 where chosen ones rise more. Of answers that others wrote it is no KL.

    Losses without a reference have no tokens either, for TRL logs their log-probabilities a token. The drops are then those
    since the `first` training log, of other pairs as a rule, and there is no `kl`.
    """
    prefix = "eval_" if "eval_loss" in entry else ""
    sides = ("chosen", "rejected")
    if f"{prefix}logps/chosen" not in entry:
        return {}
    if f"{prefix}tokens/chosen" not in entry:
        return {f"{prefix}{side}_drop": first[f"logps/{side}"] - entry[f"{prefix}logps/{side}"] for side in sides if first}
    tokens = {side: entry[f"{prefix}tokens/{side}"] for side in sides}
    falls = {side: -entry[f"{prefix}rewards/{side}"] / beta for side in sides}
    drops = {f"{prefix}{side}_drop": falls[side] / tokens[side] for side in sides}
    return {**drops, f"{prefix}kl": sum(falls.values()) / sum(tokens.values())}


def alarms(history: Sequence[Entry], steps: int) -> list[Alarm]:
    """What has rung in training of so many steps, each alarm once, where it rang first."""
    found: dict[str, Alarm] = {}
    for end in range(1, len(history) + 1):
        for alarm in ringing(history[:end], steps):
            found.setdefault(alarm.name, alarm)
    return list(found.values())


def ringing(history: Sequence[Entry], steps: int) -> list[Alarm]:
    """What rings at the newest entry."""
    newest = history[-1]
    if not finite(newest):
        return [Alarm("nan_loss", newest["step"], None, None, "the loss or its gradient is no number any more")]
    logs = [entry for entry in history if "loss" in entry and "chosen_drop" in entry]
    if not logs or logs[-1] is not newest:
        return []
    if len(logs) < 2 * WINDOW:
        drop = newest["chosen_drop"]
        said = f"the chosen answers have become less likely by {drop:.2g} nats a token; the model unlearns what it should say"
        return [Alarm("chosen_falls", newest["step"], drop, PLUNGE, said)] if drop > PLUNGE else []
    return [
        Alarm(name, newest["step"], value, limit, said.format(value=value, limit=limit))
        for name, (rule, said) in RULES.items()
        if (rang := rule(logs, newest["step"] / steps))
        for value, limit in (rang,)
    ]


def exceeded(entry: Entry, limits: Mapping[str, float | None]) -> dict[str, Any] | None:
    """The first of the `limits`, by its gate, that an entry exceeds, or that its loss is no number; None where all hold."""
    if not finite(entry):
        return {"gate": "finite_loss", "value": None, "limit": None, "step": entry["step"]}
    for gate, figure in LIVE.items():
        value, limit = entry.get(figure, entry.get(f"eval_{figure}")), limits.get(gate)
        if value is not None and limit is not None and value > limit:
            return {"gate": gate, "value": value, "limit": limit, "step": entry["step"]}
    return None


def said(stopped: Mapping[str, Any]) -> str:
    """What `exceeded` tells, in words."""
    if stopped["value"] is None:
        return "the loss or its gradient is no number any more"
    return f"gates.{stopped['gate']} = {stopped['limit']:g} nats a token does not hold: it is {stopped['value']:.3g}"


def finite(entry: Entry) -> bool:
    """Whether an entry's losses and gradient are numbers."""
    return all(math.isfinite(entry[name]) for name in ("loss", "eval_loss", "grad_norm") if name in entry)


Rang = tuple[float, float] | None
"""The value that rings, and its limit."""


def _chosen_falls(logs: Sequence[Entry], part: float) -> Rang:
    before, now = _mean(logs[-2 * WINDOW : -WINDOW], "chosen_drop"), _mean(logs[-WINDOW:], "chosen_drop")
    return (now, FALL) if now > FALL and now > before else None


def _accuracy_saturates(logs: Sequence[Entry], part: float) -> Rang:
    """Not by accuracy alone, which is full at once where the sides are easily told apart, while the loss still falls."""
    accuracy, loss, limit = _mean(logs[-WINDOW:], "rewards/accuracies"), _mean(logs[-WINDOW:], "loss"), LEARNT * logs[0]["loss"]
    return (loss, limit) if part <= 0.5 and accuracy >= 0.99 and loss < limit else None


def _kl_leaps(logs: Sequence[Entry], part: float) -> Rang:
    kl = [entry["kl"] for entry in logs if "kl" in entry]
    changes = [after - before for before, after in pairwise(kl)]
    if len(changes) < WINDOW:
        return None
    limit = max(LEAP, SUDDEN * median(abs(change) for change in changes[:-1]))
    return (changes[-1], limit) if changes[-1] > limit else None


def _entropy_collapses(logs: Sequence[Entry], part: float) -> Rang:
    if any("entropy" not in entry for entry in (*logs[:WINDOW], *logs[-WINDOW:])):
        return None
    now, limit = _mean(logs[-WINDOW:], "entropy"), COLLAPSED * _mean(logs[:WINDOW], "entropy")
    return (now, limit) if now < limit else None


def _mean(entries: Sequence[Entry], name: str) -> float:
    return fmean(entry[name] for entry in entries)


RULES: dict[str, tuple[Callable[[Sequence[Entry], float], Rang], str]] = {
    "chosen_falls": (
        _chosen_falls,
        "the chosen answers have become less likely by {value:.2g} nats a token, and still fall; "
        "the model unlearns what it should say",
    ),
    "accuracy_saturates": (
        _accuracy_saturates,
        "every pair is told apart and the loss is down to {value:.2g} before half of the steps: "
        "the others only push answers further away",
    ),
    "kl_leaps": (_kl_leaps, "the model moved {value:.2g} nats a token away from the reference between two logs"),
    "entropy_collapses": (
        _entropy_collapses,
        "the entropy a token is down to {value:.2g} nats, below a fifth of what it was: the model hardly chooses any more",
    ),
}
"""By the alarm's name: what rings on the logs so far and the part of the steps that is done (0–1), and what it says."""
