"""Files that appear whole or not at all, and what goes wrong with files."""

import errno
import os
import shutil
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
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "Delete it, with its folder's manifest.json, and run again to redo it alone."
        ) from None


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
    """Turns a full disk into its own error, and leaves no half-written file behind."""
    try:
        yield
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfDisk(
            f"The disk of {partial.parent} is full",
            "Free some space and run again: finished shards are kept, and only what was in flight is redone.",
        ) from error


def link(source: str, target: str) -> None:
    """The same file at a second place: a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
