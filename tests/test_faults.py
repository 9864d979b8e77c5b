"""A run that is struck at any moment, at any of its processes, and started again, ends as one that nobody touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import ASKED, PLAIN, everything, table, write_prompts
from striking import MARK, Case, Injected, left, rows, whole

from dpo_data.rundir import RunDir


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> list[Injected]:
    """What `python benchmarks/faults.py` injects."""
    return everything(tmp_path_factory.mktemp("faults"), seeds=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_is_survived(injected: list[Injected]) -> None:
    print(table(injected))
    assert not [one for one in injected if one.why]


@pytest.mark.slow
def test_they_are_fifty_and_more_at_every_stage_and_process(injected: list[Injected]) -> None:
    assert len(injected) >= 50
    assert {one.stage for one in injected} == {"sample", "rank", "pair", "train", "evaluate", "publish"}
    for victim in ("run", "child", "engine", "flow", "Prefect's worker"):
        assert {f"{kind} of the {victim}".replace("the Prefect", "Prefect") for kind in ("SIGKILL", "SIGTERM")} <= {
            one.fault for one in injected
        }


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_prompts(tmp_path)
    return Case(tmp_path, PLAIN + ASKED)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_who_is_asked_to_end_does_so_at_once_and_says_how_to_go_on(case: Case, number: signal.Signals, code: int) -> None:
    slow = Case(case.folder, case.recipe.replace("delay = 0.001", "delay = 0.02"))
    run = RunDir(case.folder / "stopped")
    process = slow.begin(run, number.name)
    wait_for(run.stage("rank").shard(0).exists, process)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert told.strip().endswith("What is finished is kept; go on with `dpo-data run stopped.toml --run stopped`")
    assert "Traceback" not in told
    assert not left(number.name)
    assert run.stage("sample").manifest and not run.stage("rank").manifest


def wait_for(happened: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"it ended before: {process.communicate()[1]}"
        assert time.monotonic() < end
        time.sleep(0.01)


JUMPING = """import random, time
real, dice = time.time, random.Random(0)
time.time = lambda: real() + dice.choice((-86_400.0, 86_400.0, 3.0e8))
"""


def test_no_row_hangs_on_the_clock(case: Case) -> None:
    """Whenever the time of day is asked for, it has jumped by a day or by ten years."""
    like = whole(case, "steady")
    (case.folder / "sitecustomize.py").write_text(JUMPING)
    jumping = Case(
        case.folder, case.recipe, {"PYTHONPATH": os.pathsep.join([str(case.folder), os.environ.get("PYTHONPATH", "")])}
    )
    began = RunDir(case.folder / "jumping")
    process = jumping.begin(began, MARK)
    wait_for(began.stage("rank").shard(0).exists, process)
    process.kill()
    process.communicate()
    assert rows(whole(jumping, "jumping")) == rows(like)


HALF = """import os, signal
from dpo_data import cli
class Half:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.whole = True
    def __del__(self):
        self.whole
signal.signal(signal.SIGTERM, cli._stop)
try:
    Half()
except cli.Stopped as stopped:
    print(stopped.number)
"""


def test_what_was_half_made_as_the_signal_came_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", HALF], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("15\n", "")
