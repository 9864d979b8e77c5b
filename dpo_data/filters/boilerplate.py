"""Filters for what a model says of itself in the chosen answer: refusal, identity, cutoff.

A phrase counts where a sentence or a clause begins with it, and not inside quotation marks: an answer may tell of refusals.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from dpo_data.filters.columns import Columns, Mask
from dpo_data.filters.phrases import CUTOFF, IDENTITY, MAKERS, NAMES, REFUSAL
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.rows import PreferencePair

OPENING = 240
"""In how many characters from its beginning an answer refuses, if it does: later it only bounds what it has given."""

Also = list[Annotated[str, Field(min_length=1)]]
"""Further phrases, as they are read: found anywhere in the answer, in any case."""


class Refusal(FilterTable):
    """Drops a pair whose chosen answer declines in its opening. Turn it off for pairs that are to teach when to decline."""

    type: Literal["refusal"] = "refusal"
    also: Also = []

    def build(self, trainer: Trainer | None) -> Screen:
        return _screen("declines", REFUSAL, self.also, lambda found, pair: _refuses(found))


class Identity(FilterTable):
    """Drops a pair whose chosen answer says that it is a machine, which one, or whose; unless the prompt speaks of that one."""

    type: Literal["identity"] = "identity"
    also: Also = []

    def build(self, trainer: Trainer | None) -> Screen:
        return _screen("speaks of itself", IDENTITY, self.also, lambda found, pair: not _asked_for(found, pair))


class Cutoff(FilterTable):
    """Drops a pair whose chosen answer excuses itself with the end of its knowledge."""

    type: Literal["cutoff"] = "cutoff"
    also: Also = []

    def build(self, trainer: Trainer | None) -> Screen:
        return _screen("excuses itself with its training", CUTOFF, self.also, lambda found, pair: True)


_WORDS = "and|but|so|however|well|oh|hello|hi|unfortunately|(?:please )?(?:note|remember|be aware) that|但是?|不过|然而"
_BEGIN = rf"(?:\A|[\n.!?;:,(…。！？；：，（—–-])[\s*_#>]*(?:(?:{_WORDS})[\s,，]*)?"
"""Where a sentence or a clause begins, with the words that may come before what it says."""


def _screen(
    what: str, phrases: Sequence[str], also: Sequence[str], counts: Callable[[re.Match[str], PreferencePair], bool]
) -> Screen:
    listed = "|".join(_pattern(one) for one in phrases)
    given = "|".join(_pattern(re.escape(one)) for one in also)
    anchored = re.compile(f"{_BEGIN}(?P<said>{listed})", re.IGNORECASE | re.ASCII)
    anywhere = re.compile(given, re.IGNORECASE | re.ASCII) if given else None

    def reason(pair: PreferencePair) -> str | None:
        answer = pair.chosen[-1]["content"]
        said = [m["said"] for m in _overlapping(anchored, answer) if not _quoted(answer[: m.start("said")]) and counts(m, pair)]
        said += [m[0] for m in anywhere.finditer(answer)] if anywhere else []
        return f"the chosen answer {what}: “{' '.join(said[0].split())}”" if said else None

    def suspects(pairs: Columns) -> Mask:
        found = pairs.matching("chosen", LISTED)
        return found | pairs.matching("chosen", f"(?i){given}") if given else found

    return Screen(reason, suspects)


def _pattern(phrase: str) -> str:
    return "(?:" + phrase.replace("\\ ", " ").replace(" ", "(?:[ \t\r\n]+)").replace("'", "['’]") + ")"


LISTED = f"(?i){'|'.join(_pattern(one) for one in (*REFUSAL, *IDENTITY, *CUTOFF))}"
"""Every phrase of the three filters at once: one look costs less than three."""


def _overlapping(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Every match: the next one may begin inside the last one, whose end is where a clause begins."""
    found = []
    match = pattern.search(text)
    while match:
        found.append(match)
        match = pattern.search(text, match.start("said") or 1)
    return found


def _quoted(before: str) -> bool:
    """Whether a quotation is open at the end of this text."""
    return before.count('"') % 2 == 1 or any(before.count(left) > before.count(right) for left, right in ("“”", "「」", "«»"))


_LETTER = re.compile(r"\b(?:dear|subject:)|尊敬的|主题：", re.IGNORECASE)
_GIVES = re.compile(r"[^.!?。！？\n]*[,;，；] ?(?:but|however|though|但|不过)", re.IGNORECASE)


def _refuses(found: re.Match[str]) -> bool:
    """Whether the answer itself declines: in its opening, not in a letter that it writes, and without giving something all the
    same, as "I cannot be sure, but …" does. An apology is no such thing."""
    text, start = found.string, found.start("said")
    apologises = not re.match("i |i'|i’|我", found["said"].lower())
    return start < OPENING and not _LETTER.search(text, 0, start) and (apologises or not _GIVES.match(text, found.end()))


_NAMED = re.compile("|".join((*NAMES, *MAKERS)), re.IGNORECASE)


def _asked_for(found: re.Match[str], pair: PreferencePair) -> bool:
    """Whether the phrase names a model or maker that the prompt names too, as where a system message says who answers."""
    names = {name[0].casefold() for name in _NAMED.finditer(found["said"])}
    prompt = "\n".join(turn["content"] for turn in pair.prompt).casefold()
    return bool(names) and any(name in prompt for name in names)
