"""Read prompts: jsonl, json, csv, txt (one a line), parquet; as `prompt`, `messages` or Alpaca's `instruction`, `input`."""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from dpo_data.errors import InputError
from dpo_data.provenance import file_hash
from dpo_data.rows import Message, Prompt, in_share, prompt_id
from dpo_data.seams import Settings
from dpo_data.share import find


class Decontaminate(Settings):
    """Drop prompts that overlap the evaluation sets `against` (paths like a prompts file's): those that hold at least `share` of
    the n-grams (of `n` words) of one evaluation text. A text shorter than n words is looked for whole."""

    against: list[str]
    n: int = Field(8, ge=1)
    share: float = Field(0.5, gt=0, le=1)


class Prompts(Settings):
    """Where prompts come from: a file, or `hf://datasets/<repo>` with its `name` (configuration), `split` and `revision`.

    `system` is put before every prompt that has no system turn. `holdout` is the share kept from sampling and training, for
    `evaluate`. `near_duplicates` is the similarity (Jaccard, of five-word shingles) from which a later prompt is dropped; 1 drops
    exact repetitions alone.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    system: str | None = None
    limit: int | None = Field(None, ge=1)
    holdout: float = Field(0.0, ge=0, lt=1)
    near_duplicates: float = Field(0.8, gt=0, le=1)
    decontaminate: Decontaminate | None = None


Record = tuple[str, dict[str, Any]]
"""Where a record stands (`line 3`, `row 3`), and its columns."""


UTF8 = "utf-8-sig"
"""UTF-8, with or without the byte order mark that Windows programs put first."""


def is_held_out(prompt: Prompt, holdout: float, seed: int) -> bool:
    """Whether a prompt is kept from sampling and training, for evaluation: a share `holdout` (0–1), decided by its id."""
    return in_share(prompt.prompt_id, holdout, f"holdout:{seed}")


def prompts_hash(path: str) -> str | None:
    """The SHA-256 of a prompts file; None where it is not there, which `read_prompts` says better."""
    file = find(path)
    return file_hash(file) if file.is_file() else None


def read_prompts(path: str, limit: int | None = None) -> Iterator[Prompt]:
    """The first `limit` prompts of a file, or all, in its order. Raises InputError with file, line, and what was expected."""
    file = find(path)
    if not file.is_file():
        raise InputError(f"No prompts at {path}", "Name a .jsonl, .json, .csv, .txt or .parquet file under [prompts] path.")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: no reader for {file.suffix or 'a file without a suffix'}", f"Known: {', '.join(READERS)}.")
    try:
        for where, record in islice(reader(file), limit):
            messages = _messages(record, f"{path}, {where}")
            source = record.get("source")
            yield Prompt(
                prompt_id(messages), messages, source if isinstance(source, str) else f"{file.name}:{where.split()[1]}"
            )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {_undecodable(file)} is not UTF-8: {error.reason}", "Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Mend its permissions or its disk.") from None


def _jsonl(file: Path) -> Iterator[Record]:
    with file.open(encoding=UTF8) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _record(_parsed(line, f"{file}, line {number}"), f"{file}, line {number}")


def _json(file: Path) -> Iterator[Record]:
    table = _parsed(file.read_text(encoding=UTF8), str(file))
    if not isinstance(table, list):
        raise InputError(f"{file} holds one {type(table).__name__}, not a list of records", "Make it a JSON list.")
    for number, record in enumerate(table, 1):
        yield f"row {number}", _record(record, f"{file}, row {number}")


def _csv(file: Path) -> Iterator[Record]:
    with file.open(encoding=UTF8, newline="") as lines:
        csv.field_size_limit(2**31 - 1)
        reader = csv.DictReader(lines)
        try:
            for record in reader:
                if None in record:
                    raise InputError(
                        f"{file}, line {reader.line_num} has more fields than the header", 'Quote a text with commas: "a, b".'
                    )
                yield f"line {reader.line_num}", record
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num} is not CSV: {error}", "Mend or remove it.") from None


def _txt(file: Path) -> Iterator[Record]:
    with file.open(encoding=UTF8) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", {"prompt": line.rstrip("\n")}


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a whole Parquet file, after row {number}: {error}", "Write it again.") from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
    ".parquet": _parquet,
}


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape may be half of a surrogate pair, which is no character: encoding finds it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", "Mend or remove it.") from None


def _undecodable(file: Path) -> int:
    """The number of the first line that is not UTF-8."""
    number = 0
    with file.open("rb") as lines:
        for line in lines:
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {type(value).__name__}, not an object with columns", "Mend or remove it.")
    return value


def _messages(record: dict[str, Any], where: str) -> list[Message]:
    """A record of any known shape as messages that end with a user's turn. Raises InputError, naming the columns found."""
    match record:
        case {"messages": list(turns)} | {"prompt": list(turns)} if turns:
            messages = [_turn(turn, where) for turn in turns]
        case {"prompt": str(text)} if text.strip():
            messages = [{"role": "user", "content": text}]
        case {"instruction": str(text), "input": str(given)} if text.strip() and given.strip():
            messages = [{"role": "user", "content": f"{text}\n\n{given}"}]
        case {"instruction": str(text)} if text.strip() and not str(record.get("input") or "").strip():
            messages = [{"role": "user", "content": text}]
        case _:
            raise InputError(
                f"{where}: no prompt in the columns {', '.join(map(str, record)) or '(none)'}",
                "Give `prompt` (text or messages), `messages`, or `instruction` with an optional `input`; none may be empty.",
            )
    if not messages[-1]["content"].strip():
        raise InputError(f"{where}: the last turn is empty", "Give it a text, or remove the record.")
    if messages[-1]["role"] != "user":
        raise InputError(f"{where}: the last turn is the {messages[-1]['role']}'s", "End each prompt with a user's turn.")
    return messages


def _turn(turn: Any, where: str) -> Message:
    match turn:
        case {"role": str(role), "content": str(content)}:
            return {"role": role, "content": content}
    raise InputError(f"{where}: a turn is not {{role, content}} with text in both: {str(turn)[:80]}", "Mend it.")
