"""What `evaluate` measured of base and trained model, in words, a line each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from dpo_data.numbers import number, percent

Figure = Mapping[str, float | None]
"""An `evaluation.schema.Estimate` as JSON: a value with the ends of its interval, which are null where it has none."""


class Change(NamedTuple):
    """`by`: how far the trained model is from the base, with the 95 % interval; empty where no interval is known."""

    name: str
    before: str
    after: str
    by: str


def changes(evaluated: Mapping[str, Any]) -> list[Change]:
    """The lines of an evaluation (`evaluation.schema.Evaluation` as JSON), the comparisons won first; those alone that it
    measured."""
    return [*_won(evaluated), *_answers(evaluated), *_text(evaluated)]


def points(figure: Figure | None, unit: str = "points", digits: int = 0) -> str:
    """A difference of shares in hundredths, as `+36 points (+28 to +43)`."""
    return _told(figure, lambda value: f"{100 * value:+.{digits}f}".replace("-", "−"), f" {unit}")


def _won(evaluated: Mapping[str, Any]) -> Iterator[Change]:
    base, trained, last, gain = (evaluated.get(name) for name in ("base", "trained", "last", "gain"))
    assert base and trained and gain
    if gain["over_base"]:
        yield _shares("comparisons won", base["win_rate"], trained["win_rate"], _twice(gain["over_base"]))
    if last and gain["over_last"]:
        name = "comparisons won with the round before"
        yield _shares(name, last["win_rate"], 1 - last["win_rate"], _twice(gain["over_last"]))
    key = "win_rate_length_controlled"
    if trained[key] is not None:
        yield _shares("won at equal length", base[key], trained[key], None)


def _answers(evaluated: Mapping[str, Any]) -> Iterator[Change]:
    base, trained, moved = (evaluated[name] for name in ("base", "trained", "changes"))
    for name, share in base["shares"].items():
        yield _shares(name.replace("_", " "), share, trained["shares"][name], moved["shares"].get(name))
    if base["mean_score"] is not None and trained["mean_score"] is not None:
        by = _told(moved.get("mean_score"), lambda value: f"{value:+.2f}".replace("-", "−"), "")
        yield Change("mean score", number(base["mean_score"]), number(trained["mean_score"]), by)
    yield _shares("answers cut off", base["cut_off"], trained["cut_off"], moved.get("cut_off"))
    if base["parsed"] is not None and trained["parsed"] is not None:
        yield _shares("answers of the form asked for", base["parsed"], trained["parsed"], moved.get("parsed"))
    times = _told(evaluated["length"], lambda value: f"× {value:.2f}", "")
    yield Change("words an answer", f"{base['words']:.1f}", f"{trained['words']:.1f}", times)


def _text(evaluated: Mapping[str, Any]) -> Iterator[Change]:
    if told := evaluated["perplexity"]:
        rise = points(told["rise"], "%")
        yield Change("perplexity of another text", number(told["base"]), number(told["trained"]), rise)


def _shares(name: str, before: float, after: float, change: Figure | None) -> Change:
    return Change(name, percent(before), percent(after), points(change))


def _twice(gain: Figure) -> Figure:
    """How far two shares are apart that sum to 1, from how far the one is above one half."""
    return {key: value and 2 * value for key, value in gain.items() if key in ("value", "low", "high")}


def _told(figure: Figure | None, said: Callable[[float], str], unit: str) -> str:
    if not figure or figure["value"] is None:
        return ""
    low, high = figure["low"], figure["high"]
    return said(figure["value"]) + unit + (f" ({said(low)} to {said(high)})" if low is not None and high is not None else "")
