"""Files that appear whole or not at all, and what goes wrong with files."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_data.errors import InputError, OutOfDisk
from dpo_data.rows import Row
from dpo_data.tables import from_table

PARQUET: dict[str, Any] = dict(compression="zstd", compression_level=3, use_content_defined_chunking=True)
"""How all Parquet is written."""

UNREADABLE = (pa.ArrowException, OSError, TypeError, ValueError, LookupError, RecursionError)
"""What a file that is cut or damaged raises, or one of other columns than ours."""


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """The rows of one canonical Parquet file, a row group at a time. Raises InputError where it cannot be read."""
    with _whole(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from from_table(file.read_row_group(group), kind)


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file. Raises InputError where it cannot be read."""
    with _whole(path), pq.ParquetFile(path) as file:
        return file.read(columns, use_threads=False)  # files are small and many: threads cost more than they give


def read_schema(path: Path) -> pa.Schema:
    """A Parquet file's schema. Raises InputError where it cannot be read."""
    with _whole(path):
        return pq.read_schema(path)


def read_column(path: Path, name: str) -> list[Any]:
    """One column's values of a Parquet file. Raises InputError where it cannot be read."""
    with _whole(path), pq.ParquetFile(path) as file:
        values: list[Any] = file.read(columns=[name]).column(0).to_pylist()
    return values


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read: {error}", "Delete it, with its folder's manifest.json, and run again to redo it alone."
        ) from None


def refuse_links(folder: Path) -> None:
    """Raises InputError where a link below the folder leads out of it. A run directory may be somebody else's, and what is
    written there, deleted or published must be its own."""
    top = folder.resolve()
    for place, folders, files in os.walk(folder):  # what goes meanwhile is none of its business
        paths = [Path(place, name) for name in (*folders, *files)]
        if path := next((one for one in paths if one.is_symlink() and not one.resolve().is_relative_to(top)), None):
            raise InputError(f"{path} is a link out of {folder}", "Put the file or folder itself there, or delete the link.")


def write_atomically(path: Path, data: bytes | memoryview) -> Path:
    """Write a file that appears whole or not at all, and is on the disk when this returns. Raises OutOfDisk."""
    partial = partial_of(path)
    with disk(partial):
        partial.write_bytes(data)
        appear(partial, path)
    return path


def partial_of(path: Path) -> Path:
    """Where a file or folder is while it is written."""
    return path.with_name(f".{path.name}.tmp")


def appear(partial: Path, path: Path) -> None:
    """Give a file that is written its name, once its bytes are on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def parquet_writers(schemas: Mapping[Path, pa.Schema]) -> Iterator[dict[str, Callable[[pa.Table], None]]]:
    """Functions, by file name, that append tables to Parquet files, which all appear together when the block ends well.

    Tables gather to row groups of 5,000, so many small ones make no small row groups.
    """
    gathered: dict[Path, list[pa.Table]] = {path: [] for path in schemas}
    writers: dict[Path, pq.ParquetWriter] = {}

    def flush(path: Path) -> None:
        with disk(partial_of(path)):
            writers[path].write_table(pa.concat_tables([pa.Table.from_batches([], schemas[path]), *gathered[path]]))
        gathered[path].clear()

    def append_to(path: Path) -> Callable[[pa.Table], None]:
        def append(table: pa.Table) -> None:
            gathered[path].append(table)
            if sum(map(len, gathered[path])) >= 5000:
                flush(path)

        return append

    try:
        for path, schema in schemas.items():
            with disk(partial_of(path)):
                writers[path] = pq.ParquetWriter(partial_of(path), schema, **PARQUET)
        yield {path.name: append_to(path) for path in schemas}
        for path in schemas:
            flush(path)
            with disk(partial_of(path)):
                writers[path].close()
        for path in schemas:
            with disk(partial_of(path)):
                appear(partial_of(path), path)
    finally:
        for path in schemas:
            partial_of(path).unlink(missing_ok=True)


@contextmanager
def disk(partial: Path) -> Iterator[None]:
    """Turns a full disk into its own error, and leaves no half-written file behind, whatever ends the block."""
    try:
        with room(partial.parent):
            yield
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turns a full disk into its own error, also where a database meets it. The disk is that of the file where one is named."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if not (what := _full(error)):
            raise
        named = getattr(error, "filename", None)
        raise OutOfDisk(
            f"The disk of {Path(named).parent if isinstance(named, str) else folder} {what}",
            "Free some space and run again: finished shards are kept, and only what was in flight is redone.",
        ) from error


@contextmanager
def intact(database: Path) -> Iterator[None]:
    """Turns what SQLite says of a file that is no database, or a damaged one, into an InputError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        raise InputError(f"{database} cannot be read: {error}", "Put it back; or delete it: judges are asked anew.") from None


FULL = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full: your quota is used up",
    errno.EFBIG: "takes no larger file: the limit is `ulimit -f`",
}


def _full(error: OSError | sqlite3.OperationalError) -> str | None:
    if isinstance(error, OSError):
        return FULL.get(error.errno or 0)
    full = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)  # the last two by a limit or a quota
    return FULL[errno.ENOSPC] if getattr(error, "sqlite_errorcode", None) in full else None


def link(source: str, target: str) -> None:
    """The same file at a second place: a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
