"""Rows as Arrow tables and back: one explicit schema a row type, never inferred.

A conversation is a list of {role, content, tool_calls}, with the calls as JSON text, which keeps arguments of any shape. What
users train on has no such column, unless the run has tools (`schema_of`). A file of an older version lacks columns that came
later: its rows have none of what stands there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dpo_data.rows import Completion, DroppedPair, DroppedPrompt, PreferencePair, Prompt, Ranking, Row, Sample


def _required(**columns: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns.items()]


def _optional(**columns: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind) for name, kind in columns.items()]


_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int32()
_TURN = _required(role=_TEXT, content=_TEXT)
MESSAGES = pa.list_(pa.struct(_TURN + _optional(tool_calls=_TEXT)))
PLAIN = pa.list_(pa.struct(_TURN))
JSON = pa.json_()
JSONS = pa.list_(JSON)
"""How conversations are stored: in the pipeline's own files; in pairs; in pairs of a run with tools, each turn as JSON."""

SOMETIMES = ("tools", "chat_template_kwargs")
"""The columns that pairs have in those runs alone in which a prompt has any."""

_COMPLETION = pa.struct(
    _required(completion_id=_TEXT, index=_WHOLE, text=_TEXT)
    + _optional(finish_reason=_TEXT, n_tokens=_WHOLE, logprob=_REAL)
    + _required(model=_TEXT)
    + _optional(tool_calls=_TEXT, score=_REAL, token_ids=pa.list_(_WHOLE))
)
_PROMPT = _required(prompt_id=_TEXT, prompt=MESSAGES, source=_TEXT)
_TOOLS = _optional(tools=_TEXT)
_REFERENCE = _optional(reference=_TEXT)
_FORM = _optional(chat_template_kwargs=_TEXT)
_WHY = _required(filter=_TEXT, reason=_TEXT)


def _pair(messages: pa.DataType, sure: bool) -> list[pa.Field]:
    """The columns of a pair. `sure`: nothing but token counts and tools may be unknown."""
    known = _required if sure else _optional
    return [
        *_required(prompt_id=_TEXT, prompt=messages),
        *known(chosen=messages, rejected=messages, chosen_id=_TEXT, rejected_id=_TEXT),
        *known(score_chosen=_REAL, score_rejected=_REAL, margin=_REAL),
        *_optional(n_tokens_chosen=_WHOLE, n_tokens_rejected=_WHOLE),
        *known(judge=_TEXT, model_chosen=_TEXT, model_rejected=_TEXT),
        *_required(source=_TEXT, flags=pa.list_(_TEXT)),
    ]


SCHEMAS: dict[type, pa.Schema] = {
    Prompt: pa.schema(_PROMPT + _TOOLS + _REFERENCE + _FORM),
    DroppedPrompt: pa.schema(_PROMPT + _WHY + _TOOLS + _REFERENCE + _FORM),
    Sample: pa.schema(
        _PROMPT + _required(completions=pa.list_(_COMPLETION)) + _optional(error=_TEXT) + _TOOLS + _REFERENCE + _FORM
    ),
    Ranking: pa.schema(
        _required(prompt_id=_TEXT, judge=_TEXT, completion_ids=pa.list_(_TEXT), scores=pa.list_(_REAL))
        + _optional(abstained=_TEXT)
        + _required(transcript=_TEXT)
    ),
    PreferencePair: pa.schema(_pair(PLAIN, sure=True)),
    DroppedPair: pa.schema(_pair(MESSAGES, sure=False) + _WHY + _TOOLS + _FORM),
}
"""The Arrow schema of each row type that is written to Parquet."""


def schema_of(kind: type, tools: bool = False, chat_template_kwargs: bool = False) -> pa.Schema:
    """A row type's schema. Pairs of a run with `tools` hold each turn as a JSON text, and a column `tools`: a struct would give
    every turn a `tool_calls` of null, on which chat templates that ask `'tool_calls' in message` fail. Those of a run with
    `chat_template_kwargs` have a column of these, JSON too and {} for none, since TRL takes no null. `datasets`, and so TRL,
    reads Arrow's JSON type as objects."""
    if kind is not PreferencePair:
        return SCHEMAS[kind]
    form = _required(chat_template_kwargs=JSON) if chat_template_kwargs else []
    return pa.schema(_pair(JSONS if tools else PLAIN, sure=True) + (_TOOLS if tools else []) + form)


def present(manifest: Mapping[str, Any]) -> dict[str, bool]:
    """Which of the columns `SOMETIMES` the pairs of a run have, by the manifest of `sample` or of `pair`."""
    return {name: bool(manifest.get(name)) for name in SOMETIMES}


def to_table(rows: Sequence[Any], kind: type, schema: pa.Schema | None = None) -> pa.Table:
    """Rows of one type as an Arrow table, in that type's schema or in the one given."""
    schema = schema or SCHEMAS[kind]
    columns = [_array([_store(getattr(row, field.name), field) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def from_table(table: pa.Table | pa.RecordBatch, kind: type[Row]) -> Iterator[Row]:
    """The rows of an Arrow table that `to_table` made."""
    names = table.schema.names
    for row in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        yield kind(**{name: _restore(name, value) for name, value in zip(names, row, strict=True)})


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == JSON:
        return pa.ExtensionArray.from_storage(JSON, pa.array(values, _TEXT))
    if kind != JSONS:
        return pa.array(values, kind)
    texts = pa.array(values, pa.list_(_TEXT))
    return pa.ListArray.from_arrays(texts.offsets, pa.ExtensionArray.from_storage(JSON, texts.values))


def as_table(columns: Mapping[str, Any], schema: pa.Schema, length: int) -> pa.Table:
    """A table of these arrays (Arrow or numpy), in the schema's order and types; a column that is not there is null.
    Conversations are restored from one way of storing them to the other."""
    arrays = [_fitted(columns[f.name], f.type) if f.name in columns else pa.nulls(length, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.combine_chunks() if column.num_chunks else _array([], column.type)  # Arrow makes no empty extension array


def _fitted(array: Any, kind: pa.DataType) -> pa.Array:
    if not isinstance(array, pa.Array) or array.type == kind:
        return array if isinstance(array, pa.Array) else pa.array(array, kind)
    if kind == JSON:
        return _array(array.fill_null("{}").to_pylist(), kind)
    if kind not in (MESSAGES, PLAIN, JSONS):
        return array.cast(kind)
    if JSONS in (kind, array.type):
        turns = [None if one is None else [_turn(turn) for turn in one] for one in array.to_pylist()]
        field = pa.field("prompt", kind)
        return _array([_store(one, field) for one in turns], kind)
    turns = array.values
    role, content = turns.field("role"), turns.field("content")
    if kind == MESSAGES:
        parts = [role, content, pa.nulls(len(turns), _TEXT)]
    elif turns.field("tool_calls").null_count < len(turns):
        raise ValueError("a conversation calls tools, and this table has no place for it: use schema_of(kind, tools=True)")
    else:
        parts = [role, content]
    return pa.ListArray.from_arrays(array.offsets, pa.StructArray.from_arrays(parts, fields=list(kind.value_type)), type=kind)


_CONVERSATIONS = frozenset({"prompt", "chosen", "rejected"})


def _store(value: Any, field: pa.Field) -> Any:
    """A row's value as Arrow holds it."""
    if value is None:
        return "{}" if field.type == JSON else None
    if field.name in _CONVERSATIONS:
        if field.type == JSONS:
            return [_json(turn) for turn in value]
        if field.type == PLAIN and any("tool_calls" in turn for turn in value):
            raise ValueError(f"{field.name} calls tools, and this table has no place for it: use schema_of(kind, tools=True)")
        return [{**turn, "tool_calls": _json(turn["tool_calls"])} if "tool_calls" in turn else turn for turn in value]
    if field.name == "completions":
        return [{**_plain(one), "tool_calls": _json(one.tool_calls) if one.tool_calls else None} for one in value]
    return _json(value) if field.name in SOMETIMES else value


def _restore(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _CONVERSATIONS:
        return [_turn(turn) for turn in value]
    if name == "completions":
        return [
            Completion(**{**one, "tool_calls": json.loads(one["tool_calls"]) if one["tool_calls"] else None}) for one in value
        ]
    if name == "chat_template_kwargs":
        return json.loads(value) or None
    return json.loads(value) if name == "tools" else value


def _turn(stored: Any) -> dict[str, Any]:
    """A turn as it was: a key that it did not have is not there."""
    if isinstance(stored, str):
        turn: dict[str, Any] = json.loads(stored)
        return turn
    if "tool_calls" not in stored:
        return dict(stored)
    calls = stored.pop("tool_calls")
    return stored if calls is None else {**stored, "tool_calls": json.loads(calls)}


def _plain(row: Completion) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Completion.__slots__}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
