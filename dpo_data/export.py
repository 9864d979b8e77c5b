"""A finished run in the format of another program: train and test files in a folder that appears whole or not at all.

    OUT/  train.jsonl  test.jsonl  train.left-out.jsonl  …

A row that the format cannot hold is not mangled: it is left out, and kept with its reason.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dpo_data.errors import EmptyStage, InputError
from dpo_data.files import appear, disk, parquet_writers, partial_of, read_column, read_rows, read_schema
from dpo_data.formats import FORMATS
from dpo_data.formats.format import Format, Group
from dpo_data.rows import PreferencePair, Ranking, Sample, batched
from dpo_data.rundir import RunDir
from dpo_data.tables import SOMETIMES, schema_of, to_table

PARTS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Exported:
    """One part of an export: its file or folder, how many records it holds, and why how many rows were left out."""

    path: Path
    records: int
    left_out: Counter[str]


def export(run: RunDir, name: str, out: Path) -> list[Exported]:
    """Write a run's pairs, or all its ranked answers, in the format `name` into the new folder `out`. A part without records
    gives no file. Raises InputError for an unknown format and for a folder that is in use, NotReady before `pair` is complete,
    EmptyStage where no row fits."""
    format = FORMATS.get(name)
    if format is None:
        raise InputError(f"No format {name!r}", f"Known: {', '.join(FORMATS)}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already", "Name a new folder, or delete it first.")
    run.stage("pair").require()
    partial = partial_of(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        parts = [_part(run, part, format, partial) for part in PARTS]
        written = [one for one in parts if one.records]
        if not written:
            reasons = sum((one.left_out for one in parts), Counter[str]()).most_common(1)
            raise EmptyStage(f"No row of {run} fits {name}: {reasons[0][0] if reasons else 'it has none'}", "Use another.")
        for file, content in format.beside([one.path.name for one in written]).items():
            _write_lines(partial / file, iter([json.dumps(content, indent=2)]))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [Exported(out / one.path.name, one.records, one.left_out) for one in parts if one.records or one.left_out]


def _part(run: RunDir, part: str, format: Format, folder: Path) -> Exported:
    """Write one part into the folder. What is left out stands beside it."""
    rows = _pairs(run, part) if format.of is PreferencePair else _groups(run, part)
    path, beside = folder / f"{part}{format.suffix}", folder / f"{part}.left-out.jsonl"
    records = 0
    left_out: Counter[str] = Counter()
    with disk(beside), beside.open("w", encoding="utf-8", newline="\n") as kept:

        def fitting() -> Iterator[Any]:
            nonlocal records
            for row in rows:
                reason = format.unfit(row)
                if reason:
                    left_out[reason] += 1
                    kept.write(_json({"reason": reason, "row": asdict(row)}) + "\n")
                    continue
                for record in format.records(row):
                    records += 1
                    yield record

        WRITERS[format.suffix](path, fitting(), _schema(run, format))
    if not left_out:
        beside.unlink()
    if not records:
        path.unlink() if path.is_file() else path.rmdir()
    return Exported(path, records, left_out)


def _pairs(run: RunDir, part: str) -> Iterator[PreferencePair]:
    return run.stage("pair").rows(PreferencePair, f"{part}.parquet")


def _groups(run: RunDir, part: str) -> Iterator[Group]:
    """The prompts whose pairs are in this part, and for train also those that gave no pair; a shard's rankings in memory."""
    sampled, ranked = run.stage("sample"), run.stage("rank")
    sampled.require()
    ranked.require()
    of_test = set(read_column(run.stage("pair").path / "test.parquet", "prompt_id"))
    for shard in sampled.shards():
        path = ranked.path / shard.name  # none where no prompt of the shard could be sampled
        rankings = {row.prompt_id: row for row in (read_rows(path, Ranking) if path.exists() else ())}
        for sample in read_rows(shard, Sample):
            if (sample.prompt_id in of_test) == (part == "test"):
                yield Group(sample, rankings.get(sample.prompt_id))


def _schema(run: RunDir, format: Format) -> pa.Schema | None:
    """The schema of a format in Parquet, with a place for what only some runs have."""
    if not format.columns:
        return None
    names = {name for part in PARTS for name in read_schema(run.stage("pair").path / f"{part}.parquet").names}
    columns = {name: name in names for name in SOMETIMES}
    return pa.schema([field for field in schema_of(PreferencePair, **columns) if field.name in format.columns])


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with disk(partial_of(path)):
        with partial_of(path).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        appear(partial_of(path), path)


def _write_jsonl(path: Path, records: Iterator[Any], schema: pa.Schema | None) -> None:
    _write_lines(path, map(_json, records))


def _write_parquet(path: Path, records: Iterator[Any], schema: pa.Schema | None) -> None:
    with parquet_writers({path: schema}) as append:
        for batch in batched(records, 500):
            append[path.name](to_table(batch, PreferencePair, schema))


def _write_folder(path: Path, records: Iterator[Any], schema: pa.Schema | None) -> None:
    path.mkdir()
    for number, text in enumerate(records, 1):
        file = path / f"{number:06d}.txt"
        with disk(file):
            file.write_bytes(text.encode())


WRITERS: dict[str, Callable[[Path, Iterator[Any], pa.Schema | None], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    "": _write_folder,
}
"""How records are written, by a format's suffix."""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
