"""Base and trained model beside each other, as the report shows them: which answers, and what of them differs."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import product
from statistics import fmean
from typing import Any

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
    return sorted(found, key=lambda one: (sign * (one.change or 0.0), one.prompt_id))[:MOST]


def _examples(run: RunDir) -> Iterator[schema.EvaluateExample]:
    stage = run.stage("evaluate")
    score_of = {
        id: score
        for row in stage.rows(Ranking, "rank.parquet")
        for id, score in zip(row.completion_ids, row.scores, strict=True)
        if score is not None
    }
    for base, trained in zip(stage.rows(Sample, "base.parquet"), stage.rows(Sample, "trained.parquet"), strict=True):
        if base.prompt_id != trained.prompt_id:
            raise mismatch(str(stage.path), "base.parquet and trained.parquet answer different prompts")
        if not base.completions or not trained.completions:
            continue
        before, after = (_scored(row, score_of) for row in (base, trained))
        change = fmean(s for _, s in after) - fmean(s for _, s in before) if before and after else None
        ours, theirs = (base.completions[0], trained.completions[0]) if change is None else _two(before, after, change)
        yield schema.EvaluateExample(
            prompt_id=base.prompt_id,
            prompt=shown_turns(base.prompt),
            base=shown(ours.text),
            trained=shown(theirs.text),
            score_base=score_of.get(ours.completion_id),
            score_trained=score_of.get(theirs.completion_id),
            moved=None if change is None else "improved" if change > 0 else "harmed" if change < 0 else "same",
            change=change,
        )


def _scored(row: Sample, score_of: dict[str, float]) -> list[Scored]:
    return [(one, score_of[one.completion_id]) for one in row.completions if one.completion_id in score_of]


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
