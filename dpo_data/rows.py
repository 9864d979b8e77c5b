"""The few row types, their Arrow schemas, and the content ids that join them.

A row is a frozen dataclass in Python and a row of a Parquet file on disk; `to_table` and `from_table` go between the two.
Rows are joined by id, never by text or by position.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import pyarrow as pa

Message = dict[str, str]
"""One turn of a conversation: {"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that awaits an answer. `source` says where it came from, as `file:line` unless the file says more."""

    prompt_id: str
    prompt: list[Message]
    source: str


@dataclass(frozen=True, slots=True)
class DroppedPrompt:
    """A prompt that is not sampled, with the filter that dropped it and the reason."""

    prompt_id: str
    prompt: list[Message]
    source: str
    filter: str
    reason: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. `logprob` is the sum over its `n_tokens` tokens, in nats, under the model itself."""

    completion_id: str
    index: int
    text: str
    finish_reason: str | None
    n_tokens: int | None
    logprob: float | None
    model: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its N completions; or no completions and the `error` that prevented them."""

    prompt_id: str
    prompt: list[Message]
    source: str
    completions: list[Completion]
    error: str | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one judge makes of one prompt's completions.

    `scores[i]` belongs to `completion_ids[i]`: higher is better, equal is a tie, None is "not judged".
    `abstained` is None, or the reason why the judge could not decide; `transcript` is JSON: what was asked and answered.
    """

    prompt_id: str
    judge: str
    completion_ids: list[str]
    scores: list[float | None]
    abstained: str | None
    transcript: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected answer to one prompt, in TRL's explicit-prompt conversational format."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_id: str
    rejected_id: str
    score_chosen: float
    score_rejected: float
    margin: float
    judge: str
    model: str
    source: str


@dataclass(frozen=True, slots=True)
class DroppedPair:
    """A prompt that gave no pair, with the filter that dropped it and the reason; what was never known is None."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message] | None
    rejected: list[Message] | None
    chosen_id: str | None
    rejected_id: str | None
    score_chosen: float | None
    score_rejected: float | None
    margin: float | None
    judge: str | None
    model: str | None
    source: str
    filter: str
    reason: str


def _required(**columns: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns.items()]


def _optional(**columns: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind) for name, kind in columns.items()]


_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int32()
_MESSAGES = pa.list_(pa.struct(_required(role=_TEXT, content=_TEXT)))
_COMPLETION = pa.struct(
    _required(completion_id=_TEXT, index=_WHOLE, text=_TEXT)
    + _optional(finish_reason=_TEXT, n_tokens=_WHOLE, logprob=_REAL)
    + _required(model=_TEXT)
)
_PROMPT = _required(prompt_id=_TEXT, prompt=_MESSAGES, source=_TEXT)
_WHY = _required(filter=_TEXT, reason=_TEXT)
_SIDES: dict[str, pa.DataType] = dict(
    chosen=_MESSAGES,
    rejected=_MESSAGES,
    chosen_id=_TEXT,
    rejected_id=_TEXT,
    score_chosen=_REAL,
    score_rejected=_REAL,
    margin=_REAL,
    judge=_TEXT,
    model=_TEXT,
)

SCHEMAS: dict[type, pa.Schema] = {
    DroppedPrompt: pa.schema(_PROMPT + _WHY),
    Sample: pa.schema(_PROMPT + _required(completions=pa.list_(_COMPLETION)) + _optional(error=_TEXT)),
    Ranking: pa.schema(
        _required(prompt_id=_TEXT, judge=_TEXT, completion_ids=pa.list_(_TEXT), scores=pa.list_(_REAL))
        + _optional(abstained=_TEXT)
        + _required(transcript=_TEXT)
    ),
    PreferencePair: pa.schema(_PROMPT[:2] + _required(**_SIDES) + _PROMPT[2:]),
    DroppedPair: pa.schema(_PROMPT[:2] + _optional(**_SIDES) + _PROMPT[2:] + _WHY),
}
"""The Arrow schema of each row type that is written to Parquet."""

Row = TypeVar("Row")


def to_table(rows: Sequence[Any], kind: type) -> pa.Table:
    """Rows of one type as an Arrow table in that type's schema."""
    schema = SCHEMAS[kind]
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    if kind is Sample:
        columns["completions"] = [[_plain(c) for c in row.completions] for row in rows]
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table | pa.RecordBatch, kind: type[Row]) -> Iterator[Row]:
    """The rows of an Arrow table that `to_table` made."""
    for row in zip(*(table.column(name).to_pylist() for name in SCHEMAS[kind].names), strict=True):
        values = dict(zip(SCHEMAS[kind].names, row, strict=True))
        if kind is Sample:
            values["completions"] = [Completion(**c) for c in values["completions"]]
        yield kind(**values)


def _plain(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _COMPLETION_FIELDS}


_COMPLETION_FIELDS = [field.name for field in fields(Completion)]


def content_id(value: Any) -> str:
    """A 128-bit BLAKE2b hash, in hex, of any JSON value; the same for equal values on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def prompt_id(messages: list[Message]) -> str:
    return content_id([[m["role"], m["content"]] for m in messages])


def completion_ids(prompt_id: str, model: str, sampling: Mapping[str, Any], n: int) -> list[str]:
    """The ids of a prompt's n completions: a hash of prompt, model, sampling settings (the seed among them) and index."""
    settings = content_id(sampling)
    return [content_id([prompt_id, model, settings, index]) for index in range(n)]


def in_share(prompt_id: str, share: float, salt: str) -> bool:
    """Whether a prompt falls into a random `share` (0–1) of all prompts: decided by its id, so it stays when others change."""
    digest = hashlib.blake2b(f"{salt}:{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def request_seed(seed: int, prompt_id: str) -> int:
    """The sampling seed of one prompt (0 ≤ seed < 2^31), from the run's seed and the prompt's id, never its position."""
    digest = hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, the last one shorter."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
