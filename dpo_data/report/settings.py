"""Recipes as flat settings, `train.lora.r` and its value, and how two of them differ."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A setting of two recipes, None where a recipe has no such setting."""

    key: str
    one: Any
    other: Any


def flat(table: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys. A list is a value, and so is an empty table."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{under}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """The settings that two recipes have not alike, in the order of the first; those of the other alone come last."""
    left, right = flat(one), flat(other)
    keys = [*left, *(key for key in right if key not in left)]
    return [Difference(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]
