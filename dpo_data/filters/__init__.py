"""What drops a pair, each time with a reason. One file a kind of filter; its name in `[pair.filters]` picks it.

[pair.filters]
refusal = false                       # off
repetition = { share = 0.4 }          # on, but for this as it comes
rude = { type = "python", function = "my_filters:rude" }
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from dpo_data.errors import RecipeError
from dpo_data.filters.boilerplate import Cutoff, Identity, Refusal
from dpo_data.filters.fits import Fits
from dpo_data.filters.length import Empty, Length, LengthGap
from dpo_data.filters.private import Private
from dpo_data.filters.python import Python
from dpo_data.filters.repetition import Repetition
from dpo_data.filters.same import Identical, NearIdentical
from dpo_data.filters.scores import Margin, Tie
from dpo_data.filters.screen import FilterSettings, FilterTable, Screen, Screened, Trainer, screen
from dpo_data.filters.script import Script

__all__ = ["DEFAULTS", "FilterSettings", "Filters", "Screen", "Screened", "Trainer", "inputs", "screen"]


def _kind(given: Any) -> str | None:
    """Which of the union a filter's table is."""
    if given is False:
        return "false"
    told: str | None = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return told


def _merge(given: Any) -> Any:
    """The filters that a recipe names over the defaults, in the order in which they are tried: the defaults first."""
    if not isinstance(given, Mapping):
        return given
    own = {name: table for name, table in given.items() if name not in DEFAULTS}
    return {name: _table(name, given.get(name, default)) for name, default in DEFAULTS.items()} | {
        name: _table(name, table) for name, table in own.items()
    }


def _table(name: str, given: Any) -> Any:
    """One filter's table: its type is its name, where it does not say another. Raises RecipeError."""
    if isinstance(given, FilterTable):
        return given
    own = isinstance(given, Mapping) and given.get("type", name) != name
    if name not in DEFAULTS and not own:
        near = difflib.get_close_matches(name, DEFAULTS, 1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(DEFAULTS)}."
        raise RecipeError(f"There is no filter {name!r} in [pair.filters]", f"{remedy} One of your own names its type.")
    if isinstance(given, Mapping) or given is True:
        return {"type": name, **({} if given is True else given)}
    if given is False:
        return False
    raise RecipeError(
        f"The filter {name!r} is {given!r}, neither a table nor true nor false",
        f"Write {name} = false to turn it off, or {name} = {{ key = value }} to change it.",
    )


FilterTables = (
    Annotated[Tie, Tag("tie")]
    | Annotated[Margin, Tag("margin")]
    | Annotated[Identical, Tag("identical")]
    | Annotated[Empty, Tag("empty")]
    | Annotated[Length, Tag("length")]
    | Annotated[LengthGap, Tag("length_gap")]
    | Annotated[NearIdentical, Tag("near_identical")]
    | Annotated[Repetition, Tag("repetition")]
    | Annotated[Refusal, Tag("refusal")]
    | Annotated[Identity, Tag("identity")]
    | Annotated[Cutoff, Tag("cutoff")]
    | Annotated[Script, Tag("script")]
    | Annotated[Private, Tag("private")]
    | Annotated[Fits, Tag("fits")]
    | Annotated[Python, Tag("python")]
    | Annotated[Literal[False], Tag("false")]
)
"""Every filter's table, and what stands for one that is off."""

DEFAULTS: dict[str, Any] = {
    table.model_fields["type"].default: table()
    for table in (get_args(one)[0] for one in get_args(FilterTables))
    if table not in (Python, Literal[False])
}
"""The filters that are on unless the recipe says otherwise, in the order in which they are tried: what is told at a glance
first, what must be tokenised last. The first that gives a reason names the drop."""

Filters = Annotated[dict[str, Annotated[FilterTables, Discriminator(_kind)]], BeforeValidator(_merge)]
"""The type of `[pair.filters]`: a table a filter by its name, or false where it is off."""


def inputs(filters: Mapping[str, Any]) -> dict[str, str]:
    """The content hashes of the files that hold your own filters, by `module:function`."""
    return {function: hash for one in filters.values() if isinstance(one, Python) for function, hash in one.inputs().items()}
