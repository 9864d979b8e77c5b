"""A run that is killed at any moment and started again ends as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dpo_data.rundir import RunDir

RECIPE = """name = "faults"
[prompts]
path = "prompts.jsonl"
[sample]
n = 3
max_tokens = 8
shard_size = 16
engine = { type = "echo", delay = 0.002 }
[rank.judge]
type = "pairwise"
engine = { type = "echo", delay = 0.0003 }
"""
STAGES = ("sample", "rank", "pair")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the recipe and its prompts."""
    made = tmp_path_factory.mktemp("faults")
    rows = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) for at in range(200))
    (made / "prompts.jsonl").write_text("\n".join(rows))
    (made / "faults.toml").write_text(RECIPE)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> RunDir:
    """A run that was never killed."""
    assert start(folder, "whole").wait(60) == 0
    return RunDir(folder / "whole")


def start(folder: Path, run: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dpo_data.cli", "run", "faults.toml", "--run", run],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"it ended before: {process.communicate()[1]}"
        assert time.monotonic() < end
        time.sleep(0.001)


def in_session(session: int) -> list[psutil.Process]:
    """The living processes of a session, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def made(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*.parquet")}


def kill_and_go_on(folder: Path, whole: RunDir, seed: int) -> str:
    """Kill a run at a random moment of a random stage, and run it again to its end. Returns the moment."""
    chance, run = random.Random(seed), RunDir(folder / f"killed-{seed}")
    name = STAGES[seed % len(STAGES)]
    manifest = whole.stage(name).manifest
    assert manifest
    moment = chance.uniform(0, manifest["seconds"])
    process = start(folder, run.path.name)
    wait_for((run.stage(name).path / "recipe.json").exists, process)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(5) == -signal.SIGKILL, "it was killed in mid-run"
    process.communicate()
    end = time.monotonic() + 5
    while left := in_session(process.pid):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    again = start(folder, run.path.name)
    told = again.communicate(timeout=60)[1]
    assert again.returncode == 0, told
    assert made(run) == made(whole)
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]
    for stage in STAGES:
        one, other = run.stage(stage).manifest, whole.stage(stage).manifest
        assert one and other and one["digest"] == other["digest"]
    return f"{name} after {moment:.3f} s"


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(folder: Path, whole: RunDir) -> None:
    assert {"3-pair/train.parquet", "3-pair/test.parquet", "3-pair/dropped.parquet"} <= made(whole).keys()
    with ThreadPoolExecutor(2) as pool:
        moments = list(pool.map(lambda seed: kill_and_go_on(folder, whole, seed), range(10)))
    assert {moment.split()[0] for moment in moments} == set(STAGES)


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(folder: Path, whole: RunDir) -> None:
    run = RunDir(folder / "stopped")
    process = start(folder, "stopped")
    wait_for(run.stage("rank").shard(0).exists, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=5)[1]
    assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert told.strip().endswith("What is finished is kept; go on with `dpo-data run faults.toml --run stopped`")
    assert "Traceback" not in told
    assert not in_session(process.pid)
    assert run.stage("sample").manifest and not run.stage("rank").manifest
    assert start(folder, "stopped").wait(60) == 0
    assert made(run) == made(whole)
