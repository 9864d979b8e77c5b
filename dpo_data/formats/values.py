"""Single values of a record: JSON text, numbers, truth. Each is checked here once, and a bad one says where it stands."""

import json
import math
from typing import Any

from dpo_data.errors import InputError


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text. Raises InputError for what is no JSON, for half a character, for a key that stands twice."""
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:  # an escape may be half of a surrogate pair, which is no character: encoding finds it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", "Mend or remove it.") from None


def plain(value: Any, where: str) -> Any:
    """A nested value as JSON holds it: no dates, bytes or NaN. Raises InputError."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", "Mend or remove it.") from None


def number(value: Any, where: str) -> float | None:
    """A score: None, or a finite number, also as text. Raises InputError."""
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{where} is {short(value)}, not a finite number", "Give a number, or null for `not judged`.")
    return found


def whole(value: Any) -> int | None:
    """A count of tokens, or None for anything that is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def truth(value: Any, where: str) -> float | None:
    """A label as a score: true is 1.0, false 0.0, null None; also as text or as 1 and 0. Raises InputError."""
    known: dict[Any, float] = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
    if value is None or value == "":
        return None
    if not isinstance(value, bool | int | str) or str(value).lower() not in known:
        raise InputError(
            f"{where} is {short(value)}, neither true nor false", "Give true for a good answer, false for a bad one."
        )
    return known[str(value).lower()]


def short(value: Any) -> str:
    """A value's beginning, for a message."""
    if isinstance(value, int):  # Python refuses to print the longest ones
        return str(value) if abs(value) < 10**80 else "a huge number"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated)
