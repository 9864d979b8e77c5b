"""The Prefect server that `dpo-data deploy` starts: its garbage does not stop it, and its log keeps what matters."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows import server

STATEMENT_FAILS = """
import asyncio, sys
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from flows.server import collect_apart

WAITS = 8

async def main():
    options = {"connect_args": {"timeout": WAITS}, "isolation_level": "AUTOCOMMIT"}
    engine = create_async_engine(f"sqlite+aiosqlite:///{sys.argv[1]}", **options)
    async with engine.connect() as one, engine.connect() as other:
        await other.exec_driver_sql("PRAGMA journal_mode = WAL")
        await other.exec_driver_sql("CREATE TABLE noted (at)")
        await one.exec_driver_sql("BEGIN DEFERRED")
        await one.exec_driver_sql("SELECT * FROM noted")
        await other.exec_driver_sql("INSERT INTO noted VALUES (1)")
        try:
            await one.exec_driver_sql("UPDATE noted SET at = 2")
        except OperationalError as error:
            print(f"the failed statement: {error.orig}")
        await one.exec_driver_sql("ROLLBACK")

        await other.exec_driver_sql("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(one.exec_driver_sql("BEGIN IMMEDIATE"))
        for _ in range(100):
            await asyncio.sleep(0.01)
            for _ in range(1000):
                garbage = []
                garbage.append(garbage)
        await other.exec_driver_sql("ROLLBACK")
        [ended] = await asyncio.gather(waiting, return_exceptions=True)
    print(f"the second writer: {getattr(ended, 'orig', 'its turn')}")

if sys.argv[2] == "apart":
    collect_apart()
asyncio.run(main())
"""
"""Two writers in one event loop: one waits for the other, after a statement of its own has failed."""


@pytest.mark.parametrize(("how", "says"), [("as Python does", "database is locked"), ("apart", "its turn")])
def test_what_a_failed_statement_leaves_behind_stops_no_event_loop(tmp_path: Path, how: str, says: str) -> None:
    """The first case is what SQLAlchemy does, and why the second is there: once both end well, nothing has to be done apart."""
    command = [sys.executable, "-c", STATEMENT_FAILS, str(tmp_path / "some.db"), how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(server.__file__).parents[1])
    told = ["the failed statement: database is locked", f"the second writer: {says}"]
    assert done.stdout.splitlines() == told, done.stderr


PRINTED = """
14:34:27.196 | ERROR   | prefect.server - Encountered retryable exception in request:
Traceback (most recent call last):
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked
[SQL: UPDATE flow_run SET labels=:labels]
(Background on this error at: https://sqlalche.me/e/20/e3q8)
14:39:02.474 | ERROR   | docket.dependencies - ↩ [    21ms] mark_deployments_ready(work_queue_ids=...){mark_…:63cacb26}
Traceback (most recent call last):
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked
[SQL: WITH locked AS
(SELECT deployment.id AS id, deployment.status AS status
(Background on this error at: https://sqlalche.me/e/20/e3q8)
ERROR:    Exception in ASGI application
14:39:02.480 | ERROR   | docket.dependencies - ↩ [    21ms] mark_deployments_ready(work_queue_ids=...){mark_…:63cacb26}
Traceback (most recent call last):
14:39:03.316 | ERROR   | docket.dependencies - ↩ [     5ms] schedule_deployments(perpetual=...){schedule_deployments}
Traceback (most recent call last):
"""


def test_its_log_leaves_out_one_thing_that_it_says_each_second_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", f"print({PRINTED!r})"], stdout=subprocess.PIPE) as process:
        server.keep(process, tmp_path / "server.log")
    kept = (tmp_path / "server.log").read_text().strip().splitlines()
    printed = PRINTED.strip().splitlines()
    assert kept == printed[:5] + printed[11:12] + printed[14:]


def test_its_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOG", 10_000)
    code = "for at in range(2000): print(at, 'database is locked')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        server.keep(process, tmp_path / "server.log")
    assert (tmp_path / "server.log").read_text().endswith("1999 database is locked\n")
    kept = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(kept) == 2 and 10_000 < sum(kept) <= 20_000
