"""How far a stage is: as bars in a terminal, and in progress.json of the run directory, for whoever looks from outside."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from dpo_data.errors import DpoDataError
from dpo_data.files import read_column
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress
from dpo_data.store import is_url

FILE = "progress.json"
EVERY = 1.0
"""Seconds between two notes in it, and two looks at them."""
EVERY_AWAY = 15.0
"""The same for a run in an object store, which is paid for each."""

FAILED = {"sample": "error", "rank": "abstained"}
"""The column that tells which rows of a stage have failed."""

Counted = TypeVar("Counted", Sample, Ranking)


@contextmanager
def bars() -> Iterator[Progress]:
    """A Progress that draws a bar for each stage it hears of."""
    from tqdm import tqdm

    open_bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in open_bars:
            open_bars[stage] = tqdm(total=total, desc=f"{stage:<16}", unit=" rows", dynamic_ncols=True, disable=None)
        bar = open_bars[stage]
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        for bar in open_bars.values():
            bar.close()


class Noted:
    """A Progress that passes on what it hears, and knows for a note how far the stage is and how fast.

    The speed is that of this attempt; for rows that an engine or a judge gives, from when it was first asked: neither loading a
    model nor what was on disk counts. `failed_before`: how many of the rows on disk had failed.
    """

    def __init__(self, stage: str, listener: Progress):
        self.failed_before = 0
        self._listener = listener
        self._stage, self._began = stage, _now()
        self._what, self._done, self._total = "", 0, 0
        self._came, self._tokens, self._failed = 0, 0, 0
        self._first, self._clock, self._last = 0, time.monotonic(), time.monotonic()
        self._at: float | None = None
        self._streams = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._what and not self._streams:
            self._start(done)
        if done != self._done or stage != self._what:
            self._at, self._last = time.time(), time.monotonic()
        self._what, self._done, self._total = stage, done, total
        self._listener(stage, done, total)

    def count(self, rows: Iterator[Counted]) -> Iterator[Counted]:
        """The same rows, counted as they come."""
        self._start(self._done)
        self._streams = True
        for row in rows:
            self._came += 1
            if isinstance(row, Sample):
                self._tokens += sum(one.n_tokens or 0 for one in row.completions)
                self._failed += row.error is not None
            else:
                self._failed += row.abstained is not None
            yield row
        self._streams = False

    def note(self, error: BaseException | None = None) -> dict[str, Any]:
        """All of it, as JSON values, with the error that ended the stage; that somebody stopped it is none."""
        return {
            "stage": self._stage,
            "what": self._what or self._stage,
            "done": self._done,
            "total": self._total,
            "failed": self.failed_before + self._failed,
            "rows": self._came or self._done - self._first,
            "tokens": self._tokens,
            "seconds": round(self._last - self._clock, 3),
            "began": self._began,
            "last": _now(self._at) if self._at else None,
            "error": _told(error) if isinstance(error, Exception) else None,
            "exit_code": getattr(error, "exit_code", 1) if error else None,
        }

    def _start(self, done: int) -> None:
        self._came, self._tokens, self._first, self._clock = 0, 0, done, time.monotonic()


@contextmanager
def noted(run: RunDir, stage: str, stages: Sequence[str], progress: Progress) -> Iterator[Progress]:
    """A Progress for one stage of a run that asks for these `stages`, noted in progress.json once a second while the block runs
    and kept there where it ends with an error; nothing of a stage that is complete. A thread writes, so that no row waits for
    the disk."""
    if run.stage(stage).manifest:
        yield progress
        return
    heard, ended = Noted(stage, progress), threading.Event()
    finished = [path for one in (run.stage(stage), *run.stage(stage).parts) for path in one.shards()]

    def keep() -> None:
        for path in finished if stage in FAILED else ():
            if not ended.is_set():
                heard.failed_before += _failures(path, FAILED[stage])
        while not ended.wait(every(run)):
            _write(run, stages, heard.note())

    _write(run, stages, heard.note())
    writer = threading.Thread(target=keep, daemon=True)
    writer.start()
    last: dict[str, Any] | None = None
    try:
        yield heard
    except BaseException as error:
        last = heard.note(error)
        raise
    finally:
        ended.set()
        writer.join()
        _write(run, stages, last)


def every(run: RunDir) -> float:
    """Seconds between two notes, or two looks at them."""
    return EVERY_AWAY if is_url(str(run)) else EVERY


def counted(rows: Iterator[Counted], progress: Progress) -> Iterator[Counted]:
    """The rows as they come, counted by a Progress that does so."""
    return progress.count(rows) if isinstance(progress, Noted) else rows


def noted_in(run: RunDir) -> dict[str, Any]:
    """What progress.json holds: `stages` that the run asks for, and `now`, the note of the one that is not complete; neither,
    where it is not there."""
    path = run.path / FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _write(run: RunDir, stages: Sequence[str], now: dict[str, Any] | None) -> None:
    with suppress(DpoDataError, OSError):  # a disk that is full is told of by the stage's own files
        run.write(FILE, json.dumps({"stages": stages, "now": now}, indent=1))


def _failures(path: Path, column: str) -> int:
    with suppress(DpoDataError, OSError):  # a shard that is cut is made again
        return sum(reason is not None for reason in read_column(path, column))
    return 0


def _told(error: BaseException) -> str:
    told = str(error) if isinstance(error, DpoDataError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return " ".join(told.split())


def _now(seconds: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat(timespec="milliseconds")
