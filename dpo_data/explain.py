"""What a validation error says to a person: the key, what is wrong with it, and the nearest one that is known."""

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], where: str) -> tuple[str, str]:
    """The gravest line of a validation error, an unknown key before all others, and its remedy."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path, known = _place(first["loc"], model)
    key, context = ".".join(path), first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(path[-1], known, 1, cutoff=0.5)
            remedy = f"Did you mean {near[0]!r}?" if near else f"Known there: {', '.join(known)}."
            return f"Unknown key {key!r} in {where}", remedy
        case "missing":
            return f"{where} lacks {key!r}", "Add it."
        case "union_tag_not_found":
            return f"{where} lacks '{key}.type'", "Add it."
        case "union_tag_invalid":
            return f"'{key}.type' in {where} is {context['tag']!r}", f"Use one of {context['expected_tags']}."
    return f"{key!r} in {where} is {first['input']!r:.200}: {first['msg']}", "Mend it."


def _place(loc: tuple[Any, ...], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Where a validation error is, as keys of the model; and the keys that are known in the table that holds it."""
    path: list[str] = []
    holder: Any = model
    tables = [holder]
    named = False
    for part in loc:
        if named or isinstance(part, int):  # a name of the user's own, or a place in a list: the tables are known already
            path.append(str(part))
            named = False
            continue
        if len(tables) > 1:  # of a union, pydantic names the table that `type` picked
            tables = [table for table in tables if table.model_fields["type"].default == part]
            continue
        path.append(str(part))
        if tables:
            holder = tables[0]
            field = holder.model_fields.get(part)
            tables = _tables(field.annotation) if field else []
            named = bool(field and tables) and get_origin(field.annotation) is dict
    return path, list(holder.model_fields)


def _tables(kind: Any) -> list[Any]:
    """The tables that a key of this type may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [table for part in get_args(kind) for table in _tables(part)]
