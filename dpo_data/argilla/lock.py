"""Locks that a process holds as long as it lives, and those to whom it gave them: a killed one leaves nothing locked."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dpo_data.errors import ArgillaError


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold a file's lock; who has it is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def only_one(path: Path) -> Iterator[IO[str] | None]:
    """The lock of a server that is to be started, for the server to hold and to write who it is. None where one runs; one that
    is being started is waited for."""
    with path.open("a+") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if who(path):
                yield None
                return
            time.sleep(0.1)
        file.truncate(0)  # whoever wrote there lives no more
        yield file


def who(path: Path) -> dict[str, Any] | None:
    """What the server that holds the lock wrote there, as JSON; None where nobody holds it, or has not written yet. Raises
    ArgillaError where its folder cannot be read."""
    try:
        with suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = file.read()
                return json.loads(said) if said.endswith("}") else None
    except OSError as error:
        raise ArgillaError(
            f"{path.parent} cannot be an Argilla's home: {error.strerror}", "Name another one with --home."
        ) from None
    return None
