"""What a check found."""

from typing import NamedTuple


class Check(NamedTuple):
    """`mark`: ok, warn where something may be missed, or bad where what was asked for cannot work. `told` says what to do."""

    mark: str
    name: str
    told: str
