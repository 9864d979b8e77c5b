"""Training on several processes by `accelerate launch`: two on a CPU, which speak by gloo."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_train import Made, made, pairs, train_until_killed  # noqa: F401

from dpo_data.child import MARK
from dpo_data.errors import EngineError, RecipeError
from dpo_data.train import _job, train

PARENT = """
import json, sys
from dpo_data.child import Child
child = Child("dpo_data.trainer.child:work", logger="train")
child.send(json.load(open(sys.argv[1])))
child.receive()
"""


def marked(pid: int) -> Iterator[psutil.Process]:
    """The processes that bear the mark of a child of this process, whoever their parents are by now."""
    marks = {child.environ().get(MARK) for child in psutil.Process(pid).children()} - {None}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) in marks:
                yield process
        except psutil.Error:
            continue


@pytest.mark.slow
def test_two_processes_train_one_model(made: Made) -> None:  # noqa: F811
    """A step's batch is shared, so there are as many steps as with one; the first process speaks, and saves, for both. Killed,
    both go on from the checkpoint."""
    launch = ["--multi_gpu", "--monitor_interval", "1"]
    recipe, run = made(pairs(40), pairs(48)[40:], processes=2, launch=launch, save_steps=2)
    train_until_killed(recipe, run)
    steps: list[tuple[str, int, int]] = []
    manifest = train(recipe, run, lambda stage, done, total: steps.append((stage, done, total)))
    assert manifest["resumed_at"] in (2, 4, 6, 8)
    assert steps == [("train", at, 10) for at in range(manifest["resumed_at"] + 1, 11)]
    assert (manifest["steps"], manifest["pairs"], manifest["reference"]["computed"]) == (10, 40, 48)
    folder = run.stage("train").path
    history = json.loads((folder / "metrics.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[-1] < losses[0]
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "metrics.json",
        "model",
        "recipe.json",
        "reference.parquet",
    }


@pytest.mark.slow
def test_all_die_with_the_parent(made: Made, tmp_path: Path) -> None:  # noqa: F811
    recipe, run = made(pairs(8), [], processes=2)
    run.stage("train").open({}, {})
    (tmp_path / "job.json").write_text(json.dumps(_job(recipe, run)))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "job.json")])
    try:
        until = time.monotonic() + 120
        while len(ranks := [one for one in marked(parent.pid) if "dpo_data.trainer.rank" in " ".join(one.cmdline()[1:4])]) < 2:
            assert time.monotonic() < until and parent.poll() is None
            time.sleep(0.2)
        everyone = list(marked(parent.pid))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert len(everyone) > len(ranks)
    _, alive = psutil.wait_procs(everyone, timeout=60)
    assert not alive


@pytest.mark.slow
def test_processes_that_cannot_start_say_why(made: Made) -> None:  # noqa: F811
    recipe, run = made(pairs(8), [], processes=2, launch=["--no_such_argument"])
    with pytest.raises(EngineError, match="no_such_argument"):
        train(recipe, run, lambda *_: None)


def test_a_batch_that_cannot_be_shared(made: Made) -> None:  # noqa: F811
    with pytest.raises(
        RecipeError, match=r"'train\.batch_size' is 8, which 3 processes cannot share evenly\. Make it a multiple of 3"
    ):
        made(pairs(8), [], processes=3)
