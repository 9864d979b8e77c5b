"""Base and trained model beside each other, as the report shows them: which answers, and what of them differs."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import product
from math import inf
from typing import Any

from dpo_data.evaluation.comparisons import Scores, change, judged, scores
from dpo_data.report import schema
from dpo_data.report.facts import Thinned, mismatch, shown, shown_turns
from dpo_data.rows import Completion, Ranking, Sample
from dpo_data.rundir import RunDir

MOST = 4
"""How many of the most improved prompts are shown, of the most harmed, and in all at least."""


Scored = tuple[Completion, float]
"""An answer, and its score."""


def examples(run: RunDir) -> list[schema.EvaluateExample]:
    """The most improved held-out prompts, by the mean score of their answers; the most harmed; and others where these are few.
    One pass over the rows keeps no more than those. Raises DpoDataError where base and trained answer different prompts."""
    improved: list[schema.EvaluateExample] = []
    harmed: list[schema.EvaluateExample] = []
    others: Thinned[schema.EvaluateExample] = Thinned(2 * MOST)
    for example in _examples(run):
        if example.moved == "improved":
            improved = _first([*improved, example], -1)
        elif example.moved == "harmed":
            harmed = _first([*harmed, example], 1)
        else:
            others.add(example)
    picked = [*improved, *harmed]
    return [*picked, *(others.few(MOST - len(picked)) if len(picked) < MOST else [])]


def _first(found: list[schema.EvaluateExample], sign: int) -> list[schema.EvaluateExample]:
    """Those that moved most, in this direction; of equals, those with the lesser ids."""
    return sorted(found, key=lambda one: (sign * _by(one), one.prompt_id))[:MOST]


def _by(one: schema.EvaluateExample) -> float:
    """How far the mean score moved; without bounds where that cannot be told in numbers."""
    return one.change if one.change is not None else -inf if one.moved == "harmed" else inf


def _examples(run: RunDir) -> Iterator[schema.EvaluateExample]:
    stage = run.stage("evaluate")
    known = {row.prompt_id: scores(row) for row in stage.rows(Ranking, "rank.parquet")}
    for base, trained in zip(stage.rows(Sample, "base.parquet"), stage.rows(Sample, "trained.parquet"), strict=True):
        if base.prompt_id != trained.prompt_id:
            raise mismatch(str(stage), "base.parquet and trained.parquet answer different prompts")
        if base.completions or trained.completions:
            yield _example(base, trained, known.get(base.prompt_id, {}))


def _example(base: Sample, trained: Sample, score_of: Scores) -> schema.EvaluateExample:
    before, after = judged(base, score_of), judged(trained, score_of)
    by = change(before, after)
    told = None if any(one.score is None for one in before + after) else by
    ours, theirs = _one(base, score_of, by == inf), _one(trained, score_of, by == -inf)
    if told is not None:
        ours, theirs = _two(_scored(base, score_of), _scored(trained, score_of), told)
    return schema.EvaluateExample(
        prompt_id=base.prompt_id,
        prompt=shown_turns(base.prompt),
        base=shown(ours.text) if ours else "",
        trained=shown(theirs.text) if theirs else "",
        score_base=score_of.get(ours.completion_id) if ours else None,
        score_trained=score_of.get(theirs.completion_id) if theirs else None,
        moved=None if by is None else "improved" if by > 0 else "harmed" if by < 0 else "same",
        change=told,
    )


def _one(row: Sample, score_of: Scores, loses: bool) -> Completion | None:
    """Its first answer: of the side that loses the first that could not be scored, where there is one."""
    return min(row.completions, key=lambda one: (score_of.get(one.completion_id, 0.0) is None) != loses, default=None)


def _scored(row: Sample, score_of: Scores) -> list[Scored]:
    known = ((one, score_of.get(one.completion_id)) for one in row.completions)
    return [(one, score) for one, score in known if score is not None]


def _two(before: list[Scored], after: list[Scored], change: float) -> tuple[Completion, Completion]:
    """The two answers whose scores differ as the means do: in that direction, and as nearly by as much as can be."""

    def far(two: tuple[Scored, Scored]) -> tuple[bool, float]:
        by = two[1][1] - two[0][1]
        return by * change <= 0 and by != change, abs(by - change)

    (ours, _), (theirs, _) = min(product(before, after), key=far)
    return ours, theirs


Part = tuple[str, bool]
"""A piece of a text, and whether the other text lacks it."""


def differences(before: str, after: str) -> tuple[list[Part], list[Part]]:
    """Both texts in pieces, word by word, each marked where the other has none such in its place. White space is none."""
    ours, theirs = _words(before), _words(after)
    left: list[Part] = []
    right: list[Part] = []
    a_bare, b_bare = ([word.strip() for word in words] for words in (ours, theirs))
    for kind, a, b, c, d in SequenceMatcher(None, a_bare, b_bare, autojunk=False).get_opcodes():
        left += [("".join(ours[a:b]), kind != "equal")] if b > a else []
        right += [("".join(theirs[c:d]), kind != "equal")] if d > c else []
    return left, right


def _words(text: str) -> Sequence[str]:
    """Words with the white space behind them, and signs by themselves: joined, they are the text."""
    return re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text)


def marked(before: str, after: str) -> dict[str, Any]:
    """The two texts as markup, escaped: `<del>` around what only the first holds, `<ins>` around what only the second does."""
    from markupsafe import Markup

    told = {}
    for side, tag, parts in zip(("base", "trained"), ("del", "ins"), differences(before, after), strict=True):
        around = Markup(f"<{tag}>{{}}</{tag}>")
        told[side] = Markup("").join(around.format(text) if only else text for text, only in parts)
    return told
