"""All disk I/O of a run. A run directory is the only truth about a run.

runs/<name>/  recipe.toml  report.json  report.html  logs/
  1-sample/   recipe.json (first)   00000.parquet …   manifest.json (last)
  2-rank/ …   3-pair/ …   4-train/ …   5-evaluate/ …   6-publish/ …
A run with rounds holds such a directory for each, round-1/ …, and beside them rounds.json and rounds.html.

A file appears by atomic rename and never changes. A finished shard is skipped by the next attempt, unless its hash says that
somebody changed it. `manifest.json` is written last: its existence means that the stage is complete. So a run may be killed at
any moment and started again.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from glob import glob
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from dpo_data import lease, lock, sums
from dpo_data.errors import InputError, InUse, StoreError
from dpo_data.files import link, partial_of, write_atomically
from dpo_data.lock import Owner
from dpo_data.stage import PARTS, Stage, stage_recipe
from dpo_data.store import Store, is_url, reached

__all__ = ["FOLDERS", "PARTS", "RunDir", "Stage", "fork", "matching", "stage_recipe"]

log = logging.getLogger(__name__)

FOLDERS = {name: f"{at}-{name}" for at, name in enumerate(("sample", "rank", "pair", "train", "evaluate", "publish"), 1)}
"""A stage's folder. The numbers are fixed, whatever stages a recipe asks for."""

TELLING = r"(?!calls\.sqlite|lease\.json|.*\.html)[^/]+|[^/]+/(recipe|manifest)\.json"
"""The names of the files that tell programs of a run, and hold none of its rows."""


class RunDir:
    """One run's folder; `stage` opens a room in it. It is on this machine, or at a URL in an object store, of which `path` is a
    working copy. Raises InputError for a URL that cannot be one."""

    def __init__(self, path: str | Path):
        self._store = Store(str(path)) if is_url(path) else None
        self._folder = self._store.folder if self._store else Path(path)
        self._rounds: dict[int, RunDir] = {}

    def __str__(self) -> str:
        return self._store.url if self._store else str(self._folder)

    @property
    def path(self) -> Path:
        """Its folder on this machine, with the files that tell of the run; each stage brings its own."""
        if self._store:
            self._store.bring(TELLING)
        return self._folder

    @property
    def address(self) -> str:
        """Its URL, or its absolute path: the same from every folder."""
        return self._store.url if self._store else str(self._folder.resolve())

    @property
    def exists(self) -> bool:
        return bool(self._store.objects.keys() - {lease.FILE}) if self._store else self._folder.is_dir()

    @property
    def beside(self) -> list["RunDir"]:
        """The folders beside this one, whatever they hold."""
        if self._store:
            return [RunDir(url) for url in self._store.beside()]
        parent = self._folder.parent
        return [RunDir(one) for one in parent.glob("*") if one.is_dir() and one != self._folder]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run directory, where it is and on this machine, while the block runs; a block within, which asks again, has
        it. What was half written at its top by who was killed goes. Raises InUse."""
        within = self._folder.resolve() in lock.HELD.get()
        with lock.held(self._folder), lease.held(self._store) if self._store and not within else nullcontext():
            for left in [] if within else self._folder.glob(".*.tmp"):
                if not left.is_dir():  # a folder is a stage's, and goes when that is opened
                    left.unlink()
            if self._store and not within:
                self._store.refresh()
            yield

    @property
    def holder(self) -> Owner | None:
        """Who works in it now; None where nobody does."""
        return lock.holder(self._folder) or (lease.holder(self._store) if self._store else None)

    def stage(self, name: str) -> Stage:
        return Stage(self.path / FOLDERS[name], name, self._store)

    @property
    def rounds(self) -> list["RunDir"]:
        """The run directories of its rounds that have begun, in their order; none where it is a run by itself."""
        return list(takewhile(lambda one: (one.path / "recipe.toml").is_file(), map(self.round, count(1))))

    def round(self, number: int) -> "RunDir":
        if number not in self._rounds:
            name = f"round-{number}"
            self._rounds[number] = RunDir(f"{self}/{name}" if self._store else self._folder / name)
        return self._rounds[number]

    @property
    def logs(self) -> Path:
        """The folder of the run's logs; made where it is not there."""
        if self._store:
            self._store.bring("logs/.*")
        folder = self._folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def calls(self) -> Path:
        """What judges were asked and answered: `ledger` reads and writes it."""
        if self._store:
            self._store.bring(r"calls\.sqlite")
        return self._folder / "calls.sqlite"

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file at the top of the run directory, atomically; text as UTF-8."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = write_atomically(self.path / name, content.encode() if isinstance(content, str) else content)
        if self._store:
            self._store.put(path)
        return path

    def keep(self, path: Path) -> None:
        """Have the store, where the run is in one, take a file or a folder that grows, as a log does. What it does not take now
        it is offered next time, and the log says why."""
        try:
            if self._store and path.exists():
                self._store.push(path)
        except (StoreError, InUse) as error:
            log.warning("%s", error)


def matching(pattern: str) -> list[RunDir]:
    """The run directories whose paths, or URLs, match a pattern of `glob`, in the order of their names."""
    if not is_url(pattern):
        return [RunDir(path) for path in sorted(glob(pattern))]
    with reached(pattern) as fs:
        fs.invalidate_cache()
        return [RunDir(fs.unstrip_protocol(path)) for path in sorted(fs.glob(pattern))]


def fork(old: RunDir, new: RunDir, holds: Callable[[str, dict[str, Any]], bool]) -> list[str]:
    """Give `new` those stages of `old` that are complete and for which `holds(name, recipe)`. Returns their names.

    A stage's inputs name what it stands on by hash, so none holds that stands on one that is not kept. Shards never change,
    so they are hard-linked where the file system can. What an attempt that was killed has given stays. Raises InputError where
    `new` has another such stage begun.
    """
    kept: list[str] = []
    for name in FOLDERS:
        stage = old.stage(name)
        if stage.manifest is None or stage.recipe is None or not holds(name, stage.recipe):
            continue
        if not new.stage(name).manifest:
            target = new.stage(name).path
            if target.exists() and new.stage(name).recipe != stage.recipe:
                raise InputError(f"{new.stage(name)} is begun already", "Delete it, or name a new run directory with --run.")
            partial = partial_of(target)
            for left in (partial, target):
                shutil.rmtree(left, ignore_errors=True)
            shutil.copytree(stage.path, partial, copy_function=link, ignore=shutil.ignore_patterns(sums.SUMS))
            partial.rename(target)
        new.stage(name).keep()
        kept.append(name)
    return kept
