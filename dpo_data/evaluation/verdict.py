"""Is the model better, how sure is that, and what got worse: in words."""

from collections.abc import Iterator, Sequence
from math import exp, floor, fsum, lgamma, log

from dpo_data.evaluation.schema import Estimate, Evaluation, Gain
from dpo_data.numbers import number, percent

FEWEST = 6
"""Prompts below which nothing is shown: five that all go one way do so by chance more than once in twenty (2 · 2⁻⁵, the sign
test), and resampling, which knows those five alone, would be sure of it."""

CHANCE = ", which may be chance"
"""What is said behind what chance alone does more than once in twenty."""

DRIFT = 0.1
"""From which share of longer or shorter answers on length is worth a word."""


def verdict(gain: Gain | None) -> str:
    """One sentence on the trained model against the base, with its 95 % interval."""
    if gain is None:
        return "not shown to be better: no two answers were compared"
    won = f"{percent(gain.value + 0.5)} of comparisons won"
    if gain.low is None or gain.high is None or gain.prompts < FEWEST:
        few = "1 prompt is" if gain.prompts == 1 else f"{gain.prompts} prompts are"
        return f"not shown to be better: {won}, and {few} too few to tell"
    said = f"{won}, 95 % interval {_between(100 * (gain.low + 0.5), 100 * (gain.high + 0.5))} %"
    if gain.low > 0:
        return f"better: {said}"
    return f"worse: {said}" if gain.high < 0 else f"not shown to be better: {said}"


def worse(found: Evaluation, alarms: Sequence[str]) -> list[str]:
    """What got worse, a sentence each, the gravest first; what may be chance says so. `alarms`: what training noticed."""
    return [*_of_answers(found), *_of_comparisons(found), *_of_text(found), *(f"while it trained: {alarm}" for alarm in alarms)]


def _of_answers(found: Evaluation) -> Iterator[str]:
    """What the answers themselves lost."""
    base, trained, changes = found.base, found.trained, found.changes
    falls = [
        (f"answers that are {name}", changes.shares[name], base.shares[name], trained.shares[name]) for name in changes.shares
    ]
    if changes.parsed and base.parsed is not None and trained.parsed is not None:
        falls.append(("answers of the form asked for", changes.parsed, base.parsed, trained.parsed))
    if changes.judged:
        falls.insert(0, ("answers that were judged", changes.judged, base.judged_share, trained.judged_share))
    for name, change, before, after in falls:
        if change.value < 0:
            yield f"fewer {name}: {percent(before)} → {percent(after)}{_chance(change)}"
    if changes.failed and changes.failed.value > 0:
        yield f"more prompts without any answer: {base.failed:,} → {trained.failed:,}{_chance(changes.failed)}"
    if changes.cut_off and changes.cut_off.value > 0:
        yield f"more answers cut off: {percent(base.cut_off)} → {percent(trained.cut_off)}{_chance(changes.cut_off)}"
    score = changes.mean_score
    if score and score.value < 0:
        yield f"a lower mean score: {number(base.mean_score)} → {number(trained.mean_score)}{_chance(score)}"
    length = found.length
    if length and abs(length.value - 1) >= DRIFT and _sure(length, 1):
        drift = f"{percent(abs(length.value - 1))} {'more' if length.value > 1 else 'fewer'}"
        yield f"length drifts: {base.words:.1f} → {trained.words:.1f} words an answer, {drift}; wanted or not"


def _of_comparisons(found: Evaluation) -> Iterator[str]:
    """What the comparisons with the other models hide, or show."""
    controlled, last = found.trained.win_rate_length_controlled, found.gain.over_last
    if controlled is not None and controlled < 0.5 < found.trained.win_rate:
        yield f"what it wins may be length: between answers of one length it would win {percent(controlled)} of comparisons"
    if last and last.value < 0:
        yield f"the model of the last round wins more: {percent(0.5 - last.value)} of comparisons{_chance(last)}"
    harmed, improved = found.moved.harmed, found.moved.improved
    if harmed:
        chance = "" if _more(harmed, improved) else CHANCE
        yield f"{harmed:,} prompts are answered worse than before{chance}, and {improved:,} better"
    held_out = found.held_out
    if held_out and held_out.accuracy is not None and held_out.accuracy < 0.5:
        right = round(held_out.accuracy * (held_out.pairs or 0))
        chance = "" if _more((held_out.pairs or 0) - right, right) else CHANCE
        yield f"of the test pairs it tells only {percent(held_out.accuracy)} right{chance}"


def _of_text(found: Evaluation) -> Iterator[str]:
    """What was forgotten."""
    text = found.perplexity
    if text and text.rise.value > 0:
        rise = f"perplexity of {text.path}: {number(text.base)} → {number(text.trained)}, {percent(text.rise.value)} more"
        yield f"{rise}{_chance(text.rise)}"


def _chance(change: Estimate) -> str:
    """What is said behind a change that its interval does not tell from none."""
    return "" if _sure(change, 0) else CHANCE


def _sure(found: Estimate, none: float) -> bool:
    """Whether the interval leaves out what it would be if nothing had changed."""
    return found.low is not None and found.high is not None and not found.low <= none <= found.high


def _more(many: int, few: int) -> bool:
    """Whether so many against so few is more than chance: the sign test, at one in twenty for both directions together."""
    cases = many + few
    odds = (lgamma(cases + 1) - lgamma(at + 1) - lgamma(cases - at + 1) - cases * log(2) for at in range(many, cases + 1))
    return many > few and 2 * fsum(map(exp, odds)) < 0.05


def _between(low: float, high: float) -> str:
    """An interval in whole per cent, rounded outwards, so that it never looks narrower than it is."""
    return f"{floor(low + 1e-9)}–{-floor(-high + 1e-9)}"
