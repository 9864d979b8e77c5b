"""What evaluate's manifest tells, from the answers of all sides, their scores, and what training told."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from dpo_data.audit.figures import apart
from dpo_data.config import Evaluate
from dpo_data.evaluation.comparisons import (
    Comparison,
    Judgements,
    change,
    compare,
    gain,
    judgements,
    win_rate,
    win_rate_length_controlled,
)
from dpo_data.evaluation.figures import estimate, times
from dpo_data.evaluation.schema import Changes, Estimate, Evaluation, Gains, HeldOutPairs, Moved, Perplexity, Side
from dpo_data.evaluation.verdict import verdict, worse
from dpo_data.judges.rewards import regex, valid_json
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.templates import without_thinking

Samples = Mapping[str, Sequence[Sample]]
"""The answers of each side, by its name."""


def summary(
    samples: Samples,
    rankings: Iterable[Ranking],
    settings: Evaluate,
    trained: Mapping[str, Any],
    perplexity: Perplexity | None = None,
    test_pairs: int | None = None,
) -> Evaluation:
    """`rankings`: all sides' answers to a prompt in one row. `trained`: the manifest of train, which measured itself on so many
    `test_pairs`."""
    rows = list(rankings)
    judged = {who: judgements(answered, rows, settings.n) for who, answered in samples.items()}
    compared = {who: compare(judged["trained"], judged[who]) for who in judged if who != "trained"}
    sides = {who: _side(samples[who], judged[who], *won, settings) for who, won in _won(compared).items()}
    over_base = gain(compared["base"])
    found = Evaluation(
        prompts=len(samples["base"]),
        base=sides["base"],
        trained=sides["trained"],
        last=sides.get("last"),
        gain=Gains(over_base=over_base, over_last=gain(compared["last"]) if "last" in compared else None),
        changes=_changes(samples, judged, settings),
        length=estimate(_parts(*_both(samples, lambda one: len(one.text.split()))), times),
        moved=_moved(judged["base"], judged["trained"]),
        held_out=_held_out(trained.get("held_out") or {}, test_pairs),
        perplexity=perplexity,
        verdict=verdict(over_base),
        worse=[],
    )
    alarms = [f"{alarm['said']} (step {alarm['step']})" for alarm in (trained.get("health") or {}).get("alarms", ())]
    return found.model_copy(update={"worse": worse(found, alarms)})


def parses(form: str) -> Callable[[str], bool]:
    """Whether an answer, without its thinking, has the form: "json", or a regular expression that matches it whole."""
    if form == "json":
        return lambda text: bool(valid_json([], without_thinking(text)))
    return lambda text: bool(regex([], without_thinking(text), pattern=form, flags="s", full=True))


Won = tuple[float, float | None]
"""A side's win rate, as it is and between answers of one length."""


def _won(compared: Mapping[str, Sequence[Sequence[Comparison]]]) -> dict[str, Won]:
    """What each side wins, from the trained model's comparisons with every other one."""
    ours = {who: (win_rate(each), win_rate_length_controlled(each)) for who, each in compared.items()}
    theirs = {who: (1 - wins, None if controlled is None else 1 - controlled) for who, (wins, controlled) in ours.items()}
    return {**theirs, "trained": ours["base"]}


def _side(answered: Sequence[Sample], judged: Judgements, wins: float, controlled: float | None, settings: Evaluate) -> Side:
    scores = _flat(_scores(judged))
    shares = {name: _share(_flat(_reached(judged, least))) for name, least in settings.thresholds.items()}
    answers = [one for row in answered for one in row.completions]
    return Side(
        score=next(iter(shares.values()), wins),
        measure=f"share {next(iter(shares))}" if shares else "share of comparisons won",
        shares=shares,
        mean_score=fmean(scores) if scores else None,
        win_rate=wins,
        win_rate_length_controlled=controlled,
        answers=len(answers),
        failed=sum(row.error is not None for row in answered),
        judged=len(scores),
        judged_share=_share(_flat(_asked(answered, judged, settings.n))),
        words=fmean(len(one.text.split()) for one in answers) if answers else 0.0,
        cut_off=_share(one.finish_reason == "length" for one in answers),
        parsed=_share(map(parses(settings.must_parse), (one.text for one in answers))) if settings.must_parse else None,
    )


def _changes(samples: Samples, judged: Mapping[str, Judgements], settings: Evaluate) -> Changes:
    """The differences between trained and base, with their intervals."""

    def difference(ours: ByPrompt, theirs: ByPrompt) -> Estimate | None:
        return estimate(_parts(ours, theirs), apart)

    ours, theirs = judged["trained"], judged["base"]
    has_form = parses(settings.must_parse) if settings.must_parse else None
    shares = {name: difference(_reached(ours, least), _reached(theirs, least)) for name, least in settings.thresholds.items()}
    return Changes(
        shares={name: change for name, change in shares.items() if change},
        mean_score=difference(_scores(ours), _scores(theirs)),
        judged=difference(_asked(samples["trained"], ours, settings.n), _asked(samples["base"], theirs, settings.n)),
        failed=difference(_failed(samples["trained"]), _failed(samples["base"])),
        cut_off=difference(*_both(samples, lambda one: one.finish_reason == "length")),
        parsed=difference(*_both(samples, lambda one: has_form(one.text))) if has_form else None,
    )


ByPrompt = Mapping[str, Sequence[float]]
"""A number of each answer, or a mark of it, by prompt."""


def _both(samples: Samples, of: Callable[[Completion], float]) -> tuple[ByPrompt, ByPrompt]:
    """Of the trained model's answers, and of the base's, in the order of the prompts' ids."""
    ordered = (_ordered(samples[who]) for who in ("trained", "base"))
    trained, base = ({row.prompt_id: [of(one) for one in row.completions] for row in rows} for rows in ordered)
    return trained, base


def _ordered(answered: Iterable[Sample]) -> list[Sample]:
    return sorted(answered, key=lambda row: row.prompt_id)


def _asked(answered: Iterable[Sample], judged: Judgements, n: int) -> ByPrompt:
    """Of each answer that was asked for, n of a prompt that failed, whether it has a score."""
    found = {}
    for row in _ordered(answered):
        scored = sum(one.score is not None for one in judged[row.prompt_id])
        asked = n if row.error else len(row.completions)
        found[row.prompt_id] = [1.0] * scored + [0.0] * (asked - scored)
    return found


def _failed(answered: Iterable[Sample]) -> ByPrompt:
    return {row.prompt_id: [row.error is not None] for row in _ordered(answered)}


def _scores(judged: Judgements) -> ByPrompt:
    return {id: [one.score for one in of_prompt if one.score is not None] for id, of_prompt in judged.items()}


def _reached(judged: Judgements, least: float) -> ByPrompt:
    """Whether each answer scores so much. One that could not be scored does not."""
    return {id: [one.score is not None and one.score >= least for one in of_prompt] for id, of_prompt in judged.items()}


def _flat(numbers: ByPrompt) -> list[float]:
    return [one for of_prompt in numbers.values() for one in of_prompt]


def _parts(ours: ByPrompt, theirs: ByPrompt) -> np.ndarray:
    """What each prompt adds: our sum and count, and theirs. Shape (prompts, 4); a prompt without any answer is not in it."""
    rows = [(sum(mine), len(mine), sum(theirs[id]), len(theirs[id])) for id, mine in ours.items() if mine or theirs[id]]
    return np.array(rows, dtype=float).reshape(-1, 4)


def _moved(before: Judgements, after: Judgements) -> Moved:
    changes = [by for id in before if (by := change(before[id], after[id])) is not None]
    return Moved(
        improved=sum(by > 0 for by in changes),
        harmed=sum(by < 0 for by in changes),
        same=sum(by == 0 for by in changes),
    )


def _held_out(metrics: Mapping[str, Any], pairs: int | None) -> HeldOutPairs | None:
    names = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    found = {name: metrics.get(metric) for name, metric in names.items()}
    known = {name: value if value is not None and np.isfinite(value) else None for name, value in found.items()}
    return HeldOutPairs(**known, pairs=pairs) if any(value is not None for value in known.values()) else None


def _share(flags: Iterable[float]) -> float:
    marks = list(flags)
    return sum(marks) / len(marks) if marks else 0.0
