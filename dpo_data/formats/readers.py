"""Files as records: jsonl, json, csv, txt (one prompt a line), parquet, and a folder of texts to choose by eye."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dpo_data.errors import InputError
from dpo_data.formats import text
from dpo_data.formats.shapes import COLUMNS, EXPECTED, Record, no_reference
from dpo_data.formats.values import parsed, short

Placed = tuple[str, Record]
"""Where a record stands (`line 3`, `row 3`), and its columns."""

UTF8 = "utf-8-sig"
"""UTF-8, with or without the byte order mark that Windows programs put first."""

ROWS, BATCH, NESTED = 256, 2**30, 2**24
"""Of a Parquet file: the most rows at a time; the most bytes of a column at a time, unless one row has more; and the most
values in the lists of a row group. A small file may hold much: what is the same in many places is stored once."""


def read(path: Path, given: str, reference: str | None = None) -> Iterator[Placed]:
    """The records of a file or folder, which the user `given` names so; of a table the columns that any shape knows, and the
    one named `reference`. Raises InputError with file, line and what is wrong."""
    if not path.exists():
        raise InputError(f"No prompts at {given}", "Name a .jsonl, .json, .csv, .txt or .parquet file under [prompts] path.")
    reader = _folder if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{given}: no reader for {path.suffix or 'a file without a suffix'}", f"Known: {', '.join(READERS)}.")
    try:
        yield from _parquet(path, reference) if reader is _parquet else reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{given}, line {_undecodable(path)} is not UTF-8: {error.reason}", "Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{given} cannot be read: {error.strerror}", "Mend its permissions or its disk.") from None


def _jsonl(file: Path) -> Iterator[Placed]:
    with file.open(encoding=UTF8) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _record(parsed(line, f"{file}, line {number}"), f"{file}, line {number}")


def _json(file: Path) -> Iterator[Placed]:
    table = parsed(file.read_text(encoding=UTF8), str(file))
    if isinstance(table, dict) and not COLUMNS & table.keys():
        lists = [value for value in table.values() if isinstance(value, list)]
        table = lists[0] if len(lists) == 1 else table
    if not isinstance(table, list):
        raise InputError(
            f"{file} holds one {type(table).__name__}, not a list of records",
            "Make it a JSON list, or an object that holds one list; with a record a line, name it .jsonl.",
        )
    for number, record in enumerate(table, 1):
        yield f"row {number}", _record(record, f"{file}, row {number}")


def _csv(file: Path) -> Iterator[Placed]:
    with file.open(encoding=UTF8, newline="") as lines:
        csv.field_size_limit(2**31 - 1)
        reader = csv.DictReader(lines)
        try:
            _no_repeats(reader.fieldnames or [], f"{file}, line 1")
            for record in reader:
                if None in record:
                    raise InputError(
                        f"{file}, line {reader.line_num} has more fields than the header", 'Quote a text with commas: "a, b".'
                    )
                yield f"line {reader.line_num}", {name: value for name, value in record.items() if value != ""}
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num} is not CSV: {error}", "Mend or remove it.") from None


def _txt(file: Path) -> Iterator[Placed]:
    with file.open(encoding=UTF8) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", {"prompt": line.rstrip("\n")}


def _folder(folder: Path) -> Iterator[Placed]:
    files = texts_of(folder)
    if not files:
        raise InputError(f"No prompts at {folder}: it holds no .txt file", "Name a file, or a folder that `export` wrote.")
    for file in files:
        try:
            content = file.read_bytes().decode(UTF8)
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8: {error.reason}", "Save it as UTF-8.") from None
        yield f"file {file.name}", text.parse(content, str(file))


def texts_of(folder: Path) -> list[Path]:
    """The texts of a folder, by name."""
    return sorted(folder.glob("*.txt"))


def _parquet(file: Path, reference: str | None = None) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            names = known_columns(table.schema_arrow.names, str(file), reference)
            for placed in rows(table.iter_batches(_rows_at_once(table.metadata, names, file), columns=names), str(file)):
                number += 1
                yield placed
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file} is not a whole Parquet file, after row {number}: {error}", "Write it again.") from None


def _rows_at_once(metadata: Any, names: list[str], file: Path) -> int:
    """How many rows stay below BATCH, were each as long as all that a row group stores of a column. Raises InputError where its
    lists hold more than NESTED values, all of which one row may have."""
    largest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(metadata.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in names:
                largest = max(largest, chunk.total_uncompressed_size)
                if chunk.num_values - group.num_rows > NESTED:
                    raise InputError(
                        f"{file} has {chunk.num_values:,} values of {short(chunk.path_in_schema)} in {group.num_rows:,} rows",
                        "Write it with smaller row groups.",
                    )
    return max(1, min(ROWS, BATCH // largest))


def rows(batches: Iterable[Any], where: str) -> Iterator[Placed]:
    """The rows of Arrow batches; what is null is not there. Raises InputError."""
    number = 0
    for batch in batches:
        try:
            records = batch.to_pylist()
        except Exception as error:  # of many kinds: a time zone that is none, a date too far, bytes that are no UTF-8
            raise InputError(
                f"{where}, after row {number}, holds what no text is: {error}", "Write the columns as text."
            ) from None
        for record in records:
            number += 1
            yield f"row {number}", {name: value for name, value in record.items() if value is not None}


def known_columns(names: list[str], where: str, reference: str | None = None) -> list[str]:
    """Those of a table's columns that any shape knows, and the one named `reference`. Raises InputError where there is none, or
    where a name stands twice."""
    _no_repeats(names, where)
    if reference is not None and reference not in names:
        raise no_reference(where, reference, names)
    known = [name for name in names if name in COLUMNS or name == reference]
    if not known:
        raise InputError(
            f"{where}: no prompt in the columns {short(', '.join(names)) or '(none)'}",
            EXPECTED,
        )
    return known


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
    ".parquet": _parquet,
}


def _no_repeats(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where}: two columns are named {short(name)!r}", "Rename one, so that neither is lost.")
        seen.add(name)


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


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {type(value).__name__}, not an object with columns", "Mend or remove it.")
    return value
