"""One process at a time works in a run directory. Who only reads asks for no lock.

The lock is the kernel's (flock), held for as long as its process lives: one that was killed holds nothing, whatever the clock
says. The file that it is on tells who holds it.
"""

import fcntl
import getpass
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from dpo_data.errors import InUse
from dpo_data.files import refuse_links

FILE = ".lock"
"""At the top of the run directory; empty where nobody has held it since it was given back."""

PATIENCE = 0.5
"""Seconds for which the lock is tried: who asks who holds it holds it for a moment too."""

HELD: ContextVar[frozenset[Path]] = ContextVar("HELD", default=frozenset())
"""The run directories that are held already where this is asked: a flow holds one, and so do the tasks that it starts."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock; `since` is a time in UTC, for people to read."""

    pid: int
    host: str
    user: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}: `{self.command}`"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run directory's lock while the block runs; a block within, which asks again, has it. Raises InUse."""
    folder = folder.resolve()
    if folder in HELD.get():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    with (folder / FILE).open("a+", encoding="utf-8") as file:
        if not _taken(file, fcntl.LOCK_EX):
            raise InUse(
                f"{folder} is in use by {_told(file) or 'another process'}",
                "Wait until it ends, or end it and run again: this goes on from there. Or name another run directory.",
            )
        if gone := _told(file):
            log.warning("%s was held by %s, which was killed: its lock is taken over", folder, gone)
        file.truncate(0)
        file.write(json.dumps(asdict(this_process())))
        file.flush()
        token = HELD.set(HELD.get() | {folder})
        try:
            yield
        finally:
            HELD.reset(token)
            file.truncate(0)


def holder(folder: Path) -> Owner | None:
    """Who works in a run directory now; None where nobody does. One that is killed holds nothing."""
    with suppress(FileNotFoundError), (folder / FILE).open(encoding="utf-8") as file:
        if not _taken(file, fcntl.LOCK_SH, patience=0):
            return _told(file)
    return None


def left_by(folder: Path) -> Owner | None:
    """Who was killed at work in a run directory, where nobody has taken it over since; None where nobody was."""
    with suppress(FileNotFoundError), (folder / FILE).open(encoding="utf-8") as file:
        if _taken(file, fcntl.LOCK_SH, patience=0):
            return _told(file)
    return None


def _taken(file: IO[str], how: int, patience: float = PATIENCE) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def _told(file: IO[str]) -> Owner | None:
    """Who is named in a lock's file; None where nobody is, or not yet."""
    file.seek(0)
    with suppress(ValueError, TypeError):
        return Owner(**json.loads(file.read()))
    return None


def this_process() -> Owner:
    """This process, as the holder of a lock."""
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
    return Owner(os.getpid(), socket.gethostname(), _user(), shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), since)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
