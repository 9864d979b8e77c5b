"""One stage's folder in a run directory: what is written there, and what counts as finished."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_data import sums
from dpo_data.errors import InputError, NotReady, StaleRun
from dpo_data.files import PARQUET, parquet_writers, partial_of, read_column, read_rows, write_atomically
from dpo_data.provenance import provenance
from dpo_data.rows import Row
from dpo_data.store import Store
from dpo_data.tables import to_table

Given = TypeVar("Given")


class Stage:
    """One stage's folder: settings first, shards as they complete, the manifest last."""

    def __init__(self, path: Path, name: str, store: Store | None = None):
        self.name = name
        self._folder = path
        self._store = store
        self._below = re.escape(path.relative_to(store.folder).as_posix()) + "/" if store else ""
        self._began = time.monotonic()

    def __str__(self) -> str:
        return f"{self._store.url}/{self._folder.relative_to(self._store.folder)}" if self._store else str(self._folder)

    @property
    def path(self) -> Path:
        """Its folder on this machine, with all that the stage has made."""
        if self._store:
            for name in self._store.bring(self._store.all_of(self._folder)):
                sums.discard((self._store.folder / name).parent)  # they tell of what was here
        return self._folder

    def file(self, name: str) -> Path:
        """One of its files, without the others."""
        if self._store:
            self._store.bring(self._below + re.escape(name))
        return self._folder / name

    def open(self, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> "Stage":
        """Begin or resume. `inputs` are content hashes of what the stage reads. A shard that is not as it was written is
        deleted, for the stage to make it alone again.

        Raises StaleRun where the folder holds anything that was made with other settings or inputs.
        """
        wanted = stage_recipe(settings, inputs)
        found = self.recipe
        if found == wanted and self._store and self._is_whole(self._store):
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("part-*/.*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        shutil.rmtree(partial_of(self.path), ignore_errors=True)
        made = any(path.is_file() and path.name not in ("recipe.json", sums.SUMS) for path in self.path.rglob("*"))
        if found != wanted and made:
            how = f"was made with another recipe: {_difference(found, wanted)}" if found else "has lost its recipe.json"
            raise StaleRun(
                f"{self} {how}",
                f"Begin a new run that keeps what still holds with `dpo-data fork {str(self).rpartition('/')[0]} RECIPE "
                f"--run NEW`, or delete {self} and the stages after it to redo them.",
            )
        if found != wanted:
            write_atomically(self.path / "recipe.json", json.dumps(wanted, indent=2).encode())
        sums.mend(self.path, self.manifest)
        self.keep()
        self._began = time.monotonic()
        return self

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The settings and inputs that the stage was begun with; None before it began."""
        return _read_json(self._folder / "recipe.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the stage made; None until it is complete."""
        return _read_json(self._folder / "manifest.json")

    @property
    def digest(self) -> str | None:
        """A hash over all that the stage made; None until it is complete."""
        return (self.manifest or {}).get("digest")

    def _is_whole(self, store: Store) -> bool:
        """Whether a complete stage has all that it made, as far as a listing tells, and what of it is on this machine."""
        manifest = self.manifest
        return manifest is not None and all(
            store.size(path := self._folder / file["name"]) == file["bytes"]
            and (not path.exists() or sums.holds(path, file["sha256"]))
            for file in manifest["files"]
        )

    def part(self, index: int) -> "Stage":
        """A folder within the stage's, for what is made by itself and put together later: PARTS are `finish`'s scratch."""
        part = Stage(self.path / f"part-{index}", self.name, self._store)
        part.path.mkdir(parents=True, exist_ok=True)
        sums.mend(part.path, None)
        return part

    @property
    def parts(self) -> list["Stage"]:
        """Those folders, in their order; in a store as its listing tells of them."""
        if self._store:
            found = [re.match(self._below + r"part-(\d+)/", name) for name in self._store.objects]
            many = max((int(one[1]) + 1 for one in found if one), default=0)
        else:
            many = len(list(self._folder.glob("part-*")))
        return [Stage(self._folder / f"part-{at}", self.name, self._store) for at in range(many)]

    def require(self) -> dict[str, Any]:
        """The manifest of a stage that a later one stands on. Raises NotReady where it is not complete."""
        manifest = self.manifest
        if manifest is None:
            raise NotReady(
                f"{self} is not complete, and the next stage stands on it",
                f"Run `dpo-data {self.name} RECIPE` first, or `dpo-data run RECIPE` for every stage.",
            )
        sums.require(self.path, manifest, self.name)
        return manifest

    def shard(self, index: int) -> Path:
        return self.path / f"{index:05d}.parquet"

    def shards(self) -> list[Path]:
        """The finished shards, in order."""
        return sorted((path for path in self.path.glob("*.parquet") if path.stem.isdigit()), key=lambda path: int(path.stem))

    @property
    def finished(self) -> int:
        """How many shards are finished."""
        if not self._store:
            return len(self.shards())
        return sum(re.fullmatch(self._below + r"\d+\.parquet", name) is not None for name in self._store.objects)

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
        return self._put(sums.write(self.path / name, text.encode()))

    def write_table(self, name: str, table: pa.Table) -> Path:
        """Write an Arrow table to one Parquet file, which appears whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **PARQUET)
        return self._put(sums.write(self.path / name, memoryview(sink.getvalue())))

    @contextmanager
    def writers(self, files: Mapping[str, pa.Schema]) -> Iterator[dict[str, Callable[[pa.Table], None]]]:
        """Functions that append tables to Parquet files, which all appear together when the block ends well."""
        with parquet_writers({self.path / name: schema for name, schema in files.items()}) as append:
            yield append
        for name in files:
            self._put(self.path / name)

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
        never drained between them. `done` hears how many rows are on disk or have come back. `schema`: the rows' own, with
        metadata of its own. Returns the number of rows that did not come back.
        """
        open_shards: dict[int, dict[str, Any]] = {}
        missing: dict[int, int] = {}
        home: dict[str, int] = {}
        back = 0

        def feed() -> Iterator[Given]:
            nonlocal back
            for index, rows in shards:
                if self.shard(index).exists():
                    back += len(rows)
                    done(back)
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
            back += 1
            done(back)
        return len(home)

    def finish(self, scratch: str = "", /, **facts: Any) -> dict[str, Any]:
        """Write the manifest: counts and facts of the stage, every file's rows and hash, versions, git commit. The folders
        whose names match `scratch` are no part of it, and go when it is there: who is killed before goes on from them."""
        written = sums.read(self.path)
        made = (path for path in sorted(self.path.rglob("*")) if path.is_file() and path.name not in BOOKS)
        stay = (path for path in made if not re.fullmatch(scratch, path.relative_to(self.path).parts[0]))
        files = [sums.facts(path, self.path, written) for path in stay]
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
        sums.discard(self.path)
        self.keep()
        if scratch:
            self.sweep(scratch)
        return manifest

    def sweep(self, scratch: str) -> None:
        """Remove the folders, by a pattern of their names, that a complete stage needs no more, in the store too."""
        for folder in [path for path in self._folder.glob("*/") if re.fullmatch(scratch, path.name)]:
            shutil.rmtree(folder, ignore_errors=True)
        if self._store:
            self._store.drop([name for name in self._store.objects if re.match(f"{self._below}({scratch})/", name)])

    def keep(self) -> None:
        """Have the store, where the run is in one, hold all that is in the folder and nothing else; the manifest comes last."""
        if self._store:
            self._store.push(self._folder)

    def _put(self, path: Path) -> Path:
        if self._store:
            self._store.put(path)
        return path


PARTS = r"part-\d+"
"""The folders of a stage's parts."""
BOOKS = ("recipe.json", "manifest.json", sums.SUMS)
"""The files of a stage's folder that tell about it; all others are what it made."""


def stage_recipe(settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `recipe.json` of a stage holds: all that decides its result."""
    return _as_json({"settings": settings, "inputs": inputs})


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text()) if path.exists() else None
        if isinstance(found, dict | None):
            return found
        wrong = f"it is a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        wrong = str(error)
    raise InputError(f"{path} is no JSON object: {wrong}", "Put it back; or delete its folder, and run again.")


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
