"""The Prefect server that `dpo-data deploy` starts: `prefect server start`, its garbage collected beside its event loop.

SQLAlchemy leaves the cursor of a statement that failed open, as garbage that only the collector finds (`execute` in
sqlalchemy/dialects/sqlite/aiosqlite.py; on SQLite `database is locked` is such a failure). To end that cursor waits until its
connection is at rest (`sqlite3_reset` takes the connection's mutex), and its connection may be waiting for another writer, for
60 seconds at most. Python collects wherever it happens to be, mostly in the event loop, which is where that other writer is: it
cannot end, nobody is answered for a minute, and what was due in that minute is late. In a thread of its own, the collector is
the only one to wait.
"""

import gc
import itertools
import logging
import re
import subprocess
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

COMMAND = [sys.executable, "-P", __file__, "--no-prompt", "server", "start", "--host", "127.0.0.1", "--log-level", "WARNING"]
"""What starts it, on this machine only; `--port` is to be added."""

SETTINGS = {
    # Leases outlive a restart of the server. In its memory they would not, and the slots would be lent for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Flow runs leave the database 90 days after their end, and their events after seven.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
}
"""Settings of Prefect's, unless the environment has its own."""

YOUNG = 1.0
"""Seconds from one collection of what is new to the next; their garbage is a few MB."""

ALL = 60
"""After so many of these, everything is collected. It takes 0.2 s, in which the server does nothing else."""

LOG = 5_000_000
"""Bytes of the log, from which on it is the old one and a new one begins."""

RECORD = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \| ")
"""How a record of Prefect's begins; the lines of its traceback do not."""

NOTED = re.compile(r"docket\.dependencies - ↩ .*mark_deployments_ready\(")
"""An attempt to note when the worker last asked, that failed and is made again. On SQLite the first one fails most times, for
it reads before it writes, and another note is written between the two."""

LAST_LINE = "(Background on this error at"
"""Of a traceback of the database's."""


def main() -> None:
    """Be the `prefect` command, with the arguments of this one."""
    collect_apart()
    from prefect.cli import app

    app()


def collect_apart() -> None:
    """Have garbage collected in a thread of its own and nowhere else, from now on."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def keep(server: subprocess.Popen[bytes], log: Path) -> None:
    """Write what a server prints into its log, until it ends, but for NOTED, whose tracebacks would push out all else within
    the hour. An attempt after which none is made is kept."""
    handler = RotatingFileHandler(log, maxBytes=LOG, backupCount=1, encoding="utf-8")
    kept = True
    for line in server.stdout or ():
        text = line.decode("utf-8", "replace").rstrip()
        if RECORD.match(text):
            kept = not NOTED.search(text)
        if kept:
            handler.emit(logging.makeLogRecord({"msg": text}))
        kept = kept or text.startswith(LAST_LINE)
    handler.close()


def _collect() -> None:
    for at in itertools.count(1):
        time.sleep(YOUNG)
        gc.collect(1 if at % ALL else 2)


if __name__ == "__main__":
    main()
