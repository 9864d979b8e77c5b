"""What is to be looked at before annotators' answers are used, in one plain sentence each.

Each wants prompts enough. Where chance could give the figure, the whole interval must lie beyond what chance gives.
"""

from collections.abc import Callable, Iterator

from dpo_data.audit.entries import HASTY
from dpo_data.audit.schema import Agreement, Annotation, Annotator, Apart, Figure

LEAST = 20
"""Prompts below which nothing is said of anybody: an interval from fewer is too narrow to go by."""

LOW = 0.2
"""Krippendorff's α up to which agreement is low: "slight" for κ (Landis and Koch 1977). People who compare answers of models
agree on two in three to three in four (73 %: Ouyang et al. 2022, section 3.4), which is an α of .3 to .5 without ties."""

LEAN = 0.05
"""How far, in points of 1, a share must surely lie above chance: less of a lean changes few pairs."""

OFTEN = 0.2
"""Share of hasty answers from which on they are a habit, and not a plain case here and there."""

SAME = 0.9
"""Share of answers equal to the suggestion from which on they say little beside it: nobody knows how often it is right."""


def warnings(found: Annotation) -> list[str]:
    """Those of all annotators first, then those of each."""
    each = found.annotators if len(found.annotators) > 2 else []
    low = [told for one in each for told in _low(f"{one.name} agrees little with the others", one.agreement)]
    return [*of_all(found), *low, *(told for annotator in found.annotators for told in _of_one(annotator))]


def of_all(found: Annotation) -> list[str]:
    """Low agreement, and groups that differ: what a dataset should say of itself. None of it names a person."""
    named = [("The annotators agree little", found.agreement)]
    if len(found.sources) > 1:
        named += [(f"The annotators agree little on the prompts of {source}", one) for source, one in found.sources.items()]
    return [*(told for what, agreement in named for told in _low(what, agreement)), *_groups(found.apart)]


def _low(what: str, agreement: Agreement | None) -> Iterator[str]:
    alpha = agreement and agreement.alpha
    if alpha and alpha.prompts >= LEAST and alpha.value <= LOW:
        yield f"{what}: Krippendorff's α is {_signed(alpha)}, where 0 is chance and 1 is full agreement."


def _of_one(one: Annotator) -> Iterator[str]:
    first = one.first_best
    if first and _surely(first, (first.expected or 0.0) + LEAN):
        yield (
            f"{one.name} puts the answer shown first best in {_percent(first)} of {first.count:,} answers, where "
            f"{100 * (first.expected or 0):.0f} % is chance: the order is shuffled, so the place says nothing of the answer."
        )
    hasty = one.hasty
    if hasty and hasty.prompts >= LEAST and hasty.value >= OFTEN:
        yield (
            f"{one.name} answers in under {HASTY:g} s in {_percent(hasty)} of {hasty.count:,} answers, with a median of "
            f"{one.seconds:.1f} s: that is too short to read them."
        )
    same = one.prefilled
    if same and same.prompts >= LEAST and same.value >= SAME:
        yield (
            f"{one.name} left the suggestion as it was in {round(same.value * same.count):,} of {same.count:,} answers: "
            "these say little beside the suggestion."
        )


def _groups(apart: list[Apart]) -> Iterator[str]:
    for two in apart:
        one, other = two.groups
        if two.less and _surely(two.less, 0.0):
            yield (
                f"The groups {one} and {other} prefer different answers: between them Kendall's τ is {_signed(two.less)} lower "
                "than within them, so who is asked decides what the dataset teaches."
            )
        lean = two.longer_wins
        if lean and lean.value < 0:
            one, other, lean = other, one, _mirrored(lean)
        if lean and _surely(lean, LEAN):
            yield f"The group {one} prefers the longer answer more often than {other}, by {_percent(lean, 'points')}."


def _surely(figure: Figure, least: float) -> bool:
    """Whether the whole interval lies above this, over prompts enough."""
    return figure.prompts >= LEAST and figure.low is not None and figure.low > least


def _mirrored(figure: Figure) -> Figure:
    low, high = (None if end is None else -end for end in (figure.high, figure.low))
    return figure.model_copy(update={"value": -figure.value, "low": low, "high": high})


def _signed(figure: Figure) -> str:
    return _said(figure, lambda value: f"{round(value, 2) + 0.0:.2f}".replace("-", "−"), "")


def _percent(figure: Figure, unit: str = "%") -> str:
    return _said(figure, lambda value: f"{100 * value:.0f}", f" {unit}")


def _said(figure: Figure, form: Callable[[float], str], unit: str) -> str:
    """The value with its interval."""
    if figure.low is None or figure.high is None:
        return form(figure.value) + unit
    return f"{form(figure.value)}{unit} (95 % interval {form(figure.low)} to {form(figure.high)})"
