"""A run directory's lock: one process at a time, whoever is killed, and nobody waits for the dead."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from dpo_data import pipeline
from dpo_data.child import Child, Parent
from dpo_data.config import Recipe, dump
from dpo_data.errors import InUse
from dpo_data.lock import FILE, held, holder
from dpo_data.rundir import RunDir
from dpo_data.status import status

HOLD = "import sys, time; from pathlib import Path; from dpo_data.lock import held\nwith held(Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the run directory until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "--name", "two words"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_at_once_and_told_who_is_first(
    tmp_path: Path, recipe: Callable[..., Recipe], other: "subprocess.Popen[str]"
) -> None:
    made, run = recipe(), RunDir(tmp_path / "run")
    for start in (lambda: pipeline.run(made, run), lambda: pipeline.run_stage("sample", made, run, lambda *_: None)):
        with pytest.raises(InUse) as error:
            start()
        who = rf"process {other.pid} of \S+ on \S+, since 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: `-c .*run --name 'two words'`"
        assert error.match(
            rf"run is in use by {who}\. Wait until it ends, or end it and run again: .* another run directory\.$"
        )
    assert error.value.exit_code == 75
    assert not (run.path / "1-sample").exists()
    assert status(run).stages[-1].state == "not begun", "who only reads is let in"
    assert other.stdin
    other.stdin.close()
    other.wait()
    assert pipeline.run(made, run)["funnel"]


def test_a_run_from_the_command_line_is_refused(
    tmp_path: Path, recipe: Callable[..., Recipe], other: "subprocess.Popen[str]"
) -> None:
    (tmp_path / "made.toml").write_text(dump(recipe()))
    command = [sys.executable, "-m", "dpo_data.cli", "run", "made.toml", "--run", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr.startswith(f"dpo-data: error: {tmp_path / 'run'} is in use by process {other.pid} of ")
    assert done.stderr.count("\n") == 1


def test_who_was_killed_holds_nothing_and_that_is_said(
    tmp_path: Path, other: "subprocess.Popen[str]", caplog: pytest.LogCaptureFixture
) -> None:
    assert holder(tmp_path / "run")
    other.kill()
    other.wait()
    assert holder(tmp_path / "run") is None
    with held(tmp_path / "run"):
        found = holder(tmp_path / "run")
        assert found and found.pid == os.getpid()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"was held by process {other.pid} of " in record.message
    assert record.message.endswith("which was killed: its lock is taken over")


def test_who_ended_well_leaves_nothing_to_say(
    tmp_path: Path, other: "subprocess.Popen[str]", caplog: pytest.LogCaptureFixture
) -> None:
    other.communicate()
    with held(tmp_path / "run"):
        pass
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run"):
        raise ZeroDivisionError
    with held(tmp_path / "run"):
        pass
    assert not caplog.records
    assert (tmp_path / "run" / FILE).read_bytes() == b""


def test_a_block_within_has_it_and_another_thread_has_not(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, held(tmp_path), held(tmp_path / "." / "x" / ".."):
        with held(tmp_path / "another"):
            pass
        with pytest.raises(InUse, match=f"process {os.getpid()} "):
            pool.submit(held(tmp_path).__enter__).result()
        assert holder(tmp_path)
    with held(tmp_path):
        assert holder(tmp_path)


def test_looking_keeps_nobody_out(tmp_path: Path) -> None:
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            holder(tmp_path)

    with held(tmp_path):
        pass
    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        for _ in range(200):
            with held(tmp_path):
                pass
        ended.set()
        assert [one.result() for one in looking] == [None, None]


def wait(parent: Parent) -> None:
    """A child that says that it is there, and stays."""
    parent.send("here")
    parent.receive()


def test_a_child_that_lives_on_for_a_moment_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path):
        child = Child("test_lock:wait", logger="test", env={"PYTHONPATH": str(Path(__file__).parent)})
    with closing(child):
        assert child.receive() == "here"
        assert holder(tmp_path) is None


def test_a_file_that_tells_nothing_is_no_obstacle(tmp_path: Path) -> None:
    for text in ("{", '{"pid": 1}', "[]"):
        (tmp_path / FILE).write_text(text)
        with held(tmp_path):
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
