"""`python -m server make` makes the database; `python -m server serve SOCKET READY LOCK` serves it."""

import asyncio
import json
import os
import select
import signal
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import Any

WRITTEN_FOR = "2.8.0"


def make() -> None:
    """The tables and the owner, whose name, password and key are read from standard input as JSON."""
    from server.database import create_owner, migrate

    migrate()
    asyncio.run(create_owner(**json.load(sys.stdin)))


def serve(listening: int, ready: int, lock: int) -> None:
    """Serve on a socket until SIGTERM. `ready` is a pipe to who started this, who is told when the server answers. Where
    that one is gone before, this ends at once. Into the file that is its lock it writes who and where it is."""
    answers = threading.Event()
    threading.Thread(target=_end_with, args=(ready, answers), daemon=True).start()
    from server.app import app
    from server.database import open_to_search

    open_to_search(Path(os.environ["ARGILLA_HOME_PATH"]) / "argilla.db")
    asyncio.run(_serve(app, socket(fileno=listening), ready, lock, answers))


def _end_with(ready: int, answers: threading.Event) -> None:
    hung_up = select.poll()
    hung_up.register(ready, 0)
    hung_up.poll()
    if not answers.is_set():
        os._exit(1)


async def _serve(app: Any, listening: socket, ready: int, lock: int, answers: threading.Event) -> None:
    import uvicorn
    from argilla_server.database import async_engine

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        answers.set()
        host, port = listening.getsockname()
        os.write(lock, json.dumps({"pid": os.getpid(), "url": f"http://{host}:{port}"}).encode())
        os.write(ready, b"ready\n")
    os.close(ready)
    try:
        await serving
    finally:
        await async_engine.dispose()


if __name__ == "__main__":
    if version("argilla-server") != WRITTEN_FOR:  # before it is imported: that alone copies files
        sys.exit(f"This is argilla-server {version('argilla-server')}, not {WRITTEN_FOR}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uvicorn raises it once more at its end
    with TemporaryDirectory(prefix="ui-") as tempfile.tempdir:  # argilla_server copies its UI there when it is imported
        make() if sys.argv[1] == "make" else serve(*map(int, sys.argv[2:]))
