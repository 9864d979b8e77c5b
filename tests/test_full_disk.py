"""A full disk ends a run with one line; with more room it goes on, to the same bytes."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_data.rundir import RunDir

RECIPE = """name = "full"
[prompts]
path = "prompts.jsonl"
[sample]
n = 4
max_tokens = 12
shard_size = 8
engine = { type = "echo" }
[rank.judge]
type = "pairwise"
engine = { type = "echo" }
"""
PROMPTS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("full")
    rows = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) for at in range(PROMPTS))
    (made / "prompts.jsonl").write_text("\n".join(rows))
    (made / "full.toml").write_text(RECIPE)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> RunDir:
    """A run that had room."""
    run = RunDir(folder / "whole")
    assert start(folder, run).returncode == 0
    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 64 kB; `grow` sets its size."""
    yield from mounted(tmp_path / "disk")


def mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def start(
    folder: Path, run: RunDir, file_size: int = resource.RLIM_INFINITY, command: str = "run"
) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))

    argv = [sys.executable, "-m", "dpo_data.cli", command, "full.toml", "--run", str(run.path)]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, preexec_fn=limit, timeout=120)


def made(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*.parquet")}


def leftovers(run: RunDir) -> list[str]:
    return [path.name for path in run.path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stage"), [(16, "sample"), (90, "sample"), (500, "rank")])
def test_a_full_disk_ends_the_run_in_one_line_and_with_room_it_goes_on(
    folder: Path, whole: RunDir, disk: Path, size: int, stage: str
) -> None:
    """In rank it is the ledger of calls that fills the disk."""
    grow(disk, size)
    fails_and_goes_on(folder, whole, disk, stage)


def test_a_disk_that_is_full_when_the_pairs_come(folder: Path, whole: RunDir, disk: Path) -> None:
    grow(disk, 64_000)
    run = RunDir(disk / "run")
    for stage in ("sample", "rank"):
        assert start(folder, run, command=stage).returncode == 0
    grow(disk, shutil.disk_usage(disk).used // 1024 + 8)
    fails_and_goes_on(folder, whole, disk, "pair")


def fails_and_goes_on(folder: Path, whole: RunDir, disk: Path, stage: str) -> None:
    run = RunDir(disk / "run")
    done = start(folder, run)
    assert done.returncode == 6, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith("dpo-data: error: The disk of /") and " is full. Free some space and run again" in last
    assert all("run.log cannot be written any further" in line for line in before), done.stderr
    assert not leftovers(run)
    assert next(name for name in ("sample", "rank", "pair") if not run.stage(name).manifest) == stage
    grow(disk, 64_000)
    done = start(folder, run)
    assert done.returncode == 0, done.stderr
    assert made(run) == made(whole)
    assert not leftovers(run)


@pytest.mark.parametrize("limit", [6_000, 60_000])
def test_a_limit_of_file_sizes_is_told_as_what_it_is(folder: Path, whole: RunDir, tmp_path: Path, limit: int) -> None:
    """The small one is met by a shard, the large one by the ledger of calls."""
    run = RunDir(tmp_path / "run")
    done = start(folder, run, limit)
    assert done.returncode == 6, done.stderr
    assert "is full" in done.stderr or "takes no larger file: the limit is `ulimit -f`" in done.stderr
    assert "Traceback" not in done.stderr and not leftovers(run)
    assert start(folder, run).returncode == 0
    assert made(run) == made(whole)


def test_a_log_that_has_no_room_ends_alone_and_says_so_once(folder: Path, whole: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for logs in mounted(tmp_path / "run" / "logs"):
        (logs / "filler").write_bytes(bytes(64 * 1024))
        done = start(folder, run)
    assert done.returncode == 0, done.stderr
    assert made(run) == made(whole)
    told = [line for line in done.stderr.splitlines() if "cannot be written any further: [Errno 28]" in line]
    assert len(told) == 3, "once a stage"
    assert "Traceback" not in done.stderr
