"""How filters are run over a table of pairs: a quick look marks suspects, and the filter itself sees these alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from dpo_data.filters.columns import Columns, Mask
from dpo_data.rows import PreferencePair
from dpo_data.seams import Filter, Settings
from dpo_data.tables import from_table


@dataclass(frozen=True, slots=True)
class Trainer:
    """The model that the pairs are for. `max_length`, in tokens of prompt and answer; None is what the model can take.
    `chat_template`: the file of one; None is the model's own."""

    model: str
    revision: str | None = None
    max_length: int | None = None
    chat_template: str | None = None


class Screen(NamedTuple):
    """A filter that is ready to run. `suspects` marks at least every pair for which `reason` gives one: it may mark too many,
    never too few."""

    reason: Filter
    suspects: Callable[[Columns], Mask] = Columns.all


class FilterTable(Settings):
    """The base of every filter's table. `action`: `drop` the pair, or keep it and `flag` it as `<filter>: <reason>`."""

    action: Literal["drop", "flag"] = "drop"


class FilterSettings(Protocol):
    """A filter's table in the recipe. `build` gets what the pairs are for: None where the recipe trains nothing."""

    @property
    def action(self) -> Literal["drop", "flag"]: ...

    def build(self, trainer: Trainer | None) -> Screen: ...


class Screened(NamedTuple):
    """One entry a pair: the filter that dropped it and its reason, or None twice; and the flags it got, dropped or not."""

    names: list[str | None]
    reasons: list[str | None]
    flags: list[list[str]]


def screen(pairs: pa.Table, filters: Mapping[str, tuple[FilterSettings, Screen]]) -> Screened:
    """Try filters on a table of pairs, in their order, each a settings table and what it built. The first one that gives a
    reason names the drop; a dropped pair is not looked at again."""
    found = Screened([None] * len(pairs), [None] * len(pairs), [[] for _ in range(len(pairs))])
    columns, left = Columns(pairs), np.ones(len(pairs), bool)
    seen: dict[int, PreferencePair] = {}
    for name, (settings, one) in filters.items():
        if not left.any():
            break
        suspects: list[int] = np.flatnonzero(left & one.suspects(columns)).tolist()
        new = [at for at in suspects if at not in seen]
        seen.update(zip(new, from_table(pairs.take(pa.array(new, pa.int64())), PreferencePair), strict=True))
        for at in suspects:
            reason = one.reason(seen[at])
            if reason is None:
                continue
            if settings.action == "flag":
                found.flags[at].append(f"{name}: {reason}")
            else:
                found.names[at], found.reasons[at], left[at] = name, reason, False
    return found
