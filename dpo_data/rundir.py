"""All disk I/O of a run. A run directory is the only truth about a run.

runs/<name>/  recipe.toml  report.json  report.html  logs/
  1-sample/   recipe.json (first)   00000.parquet …   manifest.json (last)
  2-rank/ …   3-pair/ …   4-train/ …   5-evaluate/ …   6-publish/ …
A run with rounds holds such a directory for each, round-1/ …, and beside them rounds.json and rounds.html.

A file appears by atomic rename and never changes. A finished shard is skipped by the next attempt. `manifest.json` is written
last: its existence means that the stage is complete. So a run may be killed at any moment and started again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count, takewhile
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_data.errors import InputError, NotReady, StaleRun
from dpo_data.files import PARQUET, link, parquet_writers, partial_of, read_column, read_rows, write_atomically
from dpo_data.provenance import file_hash, provenance
from dpo_data.rows import Row
from dpo_data.tables import to_table

FOLDERS = {name: f"{at}-{name}" for at, name in enumerate(("sample", "rank", "pair", "train", "evaluate", "publish"), 1)}
"""A stage's folder. The numbers are fixed, whatever stages a recipe asks for."""

Given = TypeVar("Given")


class RunDir:
    """One run's folder; `stage` opens a room in it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def stage(self, name: str) -> "Stage":
        return Stage(self.path / FOLDERS[name], name)

    @property
    def rounds(self) -> list["RunDir"]:
        """The run directories of its rounds that have begun, in their order; none where it is a run by itself."""
        return list(takewhile(lambda one: (one.path / "recipe.toml").is_file(), map(self.round, count(1))))

    def round(self, number: int) -> "RunDir":
        return RunDir(self.path / f"round-{number}")

    @property
    def logs(self) -> Path:
        """The folder of the run's logs; made where it is not there."""
        folder = self.path / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def calls(self) -> Path:
        """What judges were asked and answered: `ledger` reads and writes it."""
        return self.path / "calls.sqlite"

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file at the top of the run directory, atomically; text as UTF-8."""
        self.path.mkdir(parents=True, exist_ok=True)
        return write_atomically(self.path / name, content.encode() if isinstance(content, str) else content)


class Stage:
    """One stage's folder: settings first, shards as they complete, the manifest last."""

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name
        self._began = time.monotonic()

    def open(self, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> "Stage":
        """Begin or resume. `inputs` are content hashes of what the stage reads.

        Raises StaleRun where the folder holds anything that was made with other settings or inputs.
        """
        wanted = stage_recipe(settings, inputs)
        found = self.recipe
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("part-*/.*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        shutil.rmtree(partial_of(self.path), ignore_errors=True)
        made = any(path.is_file() and path.name != "recipe.json" for path in self.path.rglob("*"))
        if found is not None and found != wanted and made:
            raise StaleRun(
                f"{self.path} was made with another recipe: {_difference(found, wanted)}",
                f"Begin a new run that keeps what still holds with `dpo-data fork {self.path.parent} RECIPE --run NEW`, "
                f"or delete {self.path} and the stages after it to redo them.",
            )
        if found != wanted:
            write_atomically(self.path / "recipe.json", json.dumps(wanted, indent=2).encode())
        self._began = time.monotonic()
        return self

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The settings and inputs that the stage was begun with; None before it began."""
        return _read_json(self.path / "recipe.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the stage made; None until it is complete."""
        return _read_json(self.path / "manifest.json")

    @property
    def digest(self) -> str | None:
        """A hash over all that the stage made; None until it is complete."""
        return (self.manifest or {}).get("digest")

    def part(self, index: int) -> "Stage":
        """A folder within the stage's, for what is made by itself and put together later; `discard` it before `finish`."""
        part = Stage(self.path / f"part-{index}", self.name)
        part.path.mkdir(parents=True, exist_ok=True)
        return part

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def require(self) -> dict[str, Any]:
        """The manifest of a stage that a later one stands on. Raises NotReady where it is not complete."""
        manifest = self.manifest
        if manifest is None:
            raise NotReady(
                f"{self.path} is not complete, and the next stage stands on it",
                f"Run `dpo-data {self.name} RECIPE` first, or `dpo-data run RECIPE` for every stage.",
            )
        for file in manifest["files"]:
            path = self.path / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise InputError(
                    f"{path} is gone or cut since {self.path} was complete",
                    "Put it back; or delete it, with manifest.json beside it, and run again to redo it alone.",
                )
        return manifest

    def shard(self, index: int) -> Path:
        return self.path / f"{index:05d}.parquet"

    def shards(self) -> list[Path]:
        """The finished shards, in order."""
        return sorted((path for path in self.path.glob("*.parquet") if path.stem.isdigit()), key=lambda path: int(path.stem))

    def rows(self, kind: type[Row], name: str | None = None) -> Iterator[Row]:
        """All rows of the finished shards in order, or of the one file `name`; one row group in memory at a time."""
        for path in [self.path / name] if name else self.shards():
            yield from read_rows(path, kind)

    def column(self, name: str) -> Iterator[Any]:
        """One column's values over all finished shards."""
        for path in self.shards():
            yield from read_column(path, name)

    def write(self, name: str, rows: Sequence[Any], kind: type) -> Path:
        """Write rows to one Parquet file, which appears whole or not at all."""
        return self.write_table(name, to_table(rows, kind))

    def write_text(self, name: str, text: str) -> Path:
        return write_atomically(self.path / name, text.encode())

    def write_table(self, name: str, table: pa.Table) -> Path:
        """Write an Arrow table to one Parquet file, which appears whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **PARQUET)
        return write_atomically(self.path / name, memoryview(sink.getvalue()))

    def writers(self, files: Mapping[str, pa.Schema]) -> AbstractContextManager[dict[str, Callable[[pa.Table], None]]]:
        """Functions that append tables to Parquet files, which all appear together when the block ends well."""
        return parquet_writers({self.path / name: schema for name, schema in files.items()})

    def fill(
        self,
        shards: Iterable[tuple[int, list[Given]]],
        work: Callable[[Iterator[Given]], Iterator[Any]],
        kind: type,
        done: Callable[[int], None] = lambda rows: None,
        schema: pa.Schema | None = None,
    ) -> int:
        """Stream rows through `work`, and write each shard when all of its rows have come back, in the order given.

        Rows and results are matched by `prompt_id`. `work` is one stream over all unfinished shards, so an engine behind it is
        never drained between them. `done` hears how many rows are on disk. `schema`: the rows' own, with metadata of its own.
        Returns the number of rows that did not come back.
        """
        open_shards: dict[int, dict[str, Any]] = {}
        missing: dict[int, int] = {}
        home: dict[str, int] = {}
        on_disk = 0

        def feed() -> Iterator[Given]:
            nonlocal on_disk
            for index, rows in shards:
                if self.shard(index).exists():
                    on_disk += len(rows)
                    done(on_disk)
                    continue
                open_shards[index] = {row.prompt_id: None for row in rows}  # type: ignore[attr-defined]
                missing[index] = len(open_shards[index])
                home.update(dict.fromkeys(open_shards[index], index))
                yield from rows

        for result in work(feed()):
            index = home.pop(result.prompt_id)
            open_shards[index][result.prompt_id] = result
            missing[index] -= 1
            if not missing[index]:
                shard = open_shards.pop(index)
                self.write_table(self.shard(index).name, to_table(list(shard.values()), kind, schema))
                on_disk += len(shard)
                done(on_disk)
        return len(home)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write the manifest: counts and facts of the stage, every file's rows and hash, versions, git commit."""
        files = [
            _file_facts(path, self.path) for path in sorted(self.path.rglob("*")) if path.is_file() and path.name not in BOOKS
        ]
        manifest = _as_json(
            {
                **facts,
                "seconds": round(time.monotonic() - self._began, 3),
                "files": files,
                "digest": _hash(json.dumps([[f["name"], f["sha256"]] for f in files]).encode()),
                **provenance(),
            }
        )
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=2).encode())
        return manifest


BOOKS = ("recipe.json", "manifest.json")
"""The files of a stage's folder that tell about it; all others are what it made."""


def fork(old: RunDir, new: RunDir, holds: Callable[[str, dict[str, Any]], bool]) -> list[str]:
    """Start `new` with those stages of `old` that are complete and for which `holds(name, recipe)`. Returns their names.

    A stage's inputs name what it stands on by hash, so none holds that stands on one that is not kept. Shards never change,
    so they are hard-linked where the file system can.
    """
    if not old.path.is_dir():
        raise InputError(f"No run at {old.path}", "Name a run directory, as runs/demo.")
    if any(new.stage(name).path.exists() for name in FOLDERS):
        raise InputError(f"{new.path} is begun already", "Go on with it, or name a new run directory with --run.")
    kept: list[str] = []
    for name in FOLDERS:
        stage = old.stage(name)
        if stage.manifest is None or stage.recipe is None or not holds(name, stage.recipe):
            continue
        target = new.stage(name).path
        partial = partial_of(target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(stage.path, partial, copy_function=link)
        partial.rename(target)
        kept.append(name)
    return kept


def stage_recipe(settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `recipe.json` of a stage holds: all that decides its result."""
    return _as_json({"settings": settings, "inputs": inputs})


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_facts(path: Path, folder: Path) -> dict[str, Any]:
    rows = {"rows": pq.read_metadata(path).num_rows} if path.suffix == ".parquet" else {}
    return {"name": str(path.relative_to(folder)), **rows, "bytes": path.stat().st_size, "sha256": file_hash(path)}


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False, default=str))
    return plain


def _difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first field in which two settings differ, as `sample.n was 8, is 4`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(k for k in wanted if k not in found)]:
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    return f"{where.removeprefix('settings.')} was {json.dumps(found)}, is {json.dumps(wanted)}"
