"""Working copies of what is in object stores: where they are, and what they held when they and the store were last the same.

A copy lies below $DPO_DATA_CACHE (default: ~/.cache/dpo-data) as its URL says, so a folder in it is the copy of that folder's
URL. Beside the copies, objects.sqlite knows their files, and what is fetched or put is in a folder of its own until all of it
is there. All of it may be deleted where no run goes on: it is fetched again.
"""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from dpo_data.files import link

_TABLE = """
CREATE TABLE IF NOT EXISTS files (url TEXT PRIMARY KEY, version TEXT, bytes INTEGER, changed_ns INTEGER) WITHOUT ROWID
"""


class Known(NamedTuple):
    """A file, and the version of its object, when they were last the same."""

    version: str
    bytes: int
    changed_ns: int

    def is_still(self, facts: os.stat_result) -> bool:
        """Whether the file was not written since."""
        return (facts.st_size, facts.st_mtime_ns) == (self.bytes, self.changed_ns)


def folder(scheme: str, place: str) -> Path:
    """Where the copy of `scheme://place` is."""
    return _home() / scheme / place


def known(url: str) -> dict[str, Known]:
    """The files of the copy of a URL, by their paths in it."""
    with _index() as index:
        rows = index.execute("SELECT * FROM files WHERE url > ? AND url < ?", (f"{url}/", f"{url}0"))  # 0 comes after /
        return {one.removeprefix(f"{url}/"): Known(*facts) for one, *facts in rows}


def note(url: str, files: Mapping[str, Known | None]) -> None:
    """Write down what is the same now; forget what is None."""
    with _index() as index:
        for name, facts in files.items():
            if facts is None:
                index.execute("DELETE FROM files WHERE url = ?", (f"{url}/{name}",))
            else:
                index.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (f"{url}/{name}", *facts))


@contextmanager
def on_the_way() -> Iterator[Path]:
    """An empty folder beside the copies, for files that have not all arrived, here or there; it goes when the block ends. That
    of a process which was killed goes when another is made: nobody holds its lock."""
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(home):  # lest one that has no lock yet be taken for left
            for left in home.glob(".on-the-way-*"):
                with suppress(BlockingIOError, FileNotFoundError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left)
            made = Path(mkdtemp(prefix=".on-the-way-", dir=home))
            stack.enter_context(_locked(made))
        stack.callback(shutil.rmtree, made)
        yield made


@contextmanager
def held(files: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Links to files, until the block ends: whoever deletes a file meanwhile, as a trainer does its old checkpoints, does not
    delete its link. Of a folder of which one is gone already there are none: half a checkpoint must not count."""
    links, going = dict[Path, Path](), set[Path]()
    with on_the_way() as folder:
        for at, file in enumerate(files):
            try:
                link(str(file), str(folder / str(at)))
            except FileNotFoundError:
                going.add(file.parent)
            else:
                links[file] = folder / str(at)
        yield {file: held for file, held in links.items() if file.parent not in going}


def files(path: Path) -> dict[Path, os.stat_result]:
    """A file, or all files below a folder, but what goes while they are read."""
    found: dict[Path, os.stat_result] = {}
    below = (Path(folder, name) for folder, _, names in os.walk(path, onerror=_raised) for name in names)
    for file in [path] if path.is_file() else below:
        with suppress(FileNotFoundError):
            found[file] = file.stat()
    return found


def _home() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DPO_DATA_CACHE") or Path(caches) / "dpo-data").expanduser().absolute()


@contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a folder's lock, which is the kernel's: one that was killed holds nothing. Raises BlockingIOError if so asked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _index() -> Iterator[sqlite3.Connection]:
    file = _home() / "objects.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=60)) as index:
        index.execute("PRAGMA synchronous = OFF")  # what a power cut takes is fetched again
        index.execute(_TABLE)
        yield index
        index.commit()


def _raised(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
