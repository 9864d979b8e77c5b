"""Faults at random moments of a real run: a signal to one of its processes, and whether the run outlives it."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from dpo_data.child import environment
from dpo_data.lock import FILE, left_by
from dpo_data.rundir import FOLDERS, RunDir

MARK = "DPO_DATA_FAULTS"
"""The variable of the environment by which all processes of a run are found, whoever their parent is now."""

ONE_CORE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Two runs at a time share two cores, and threads that wait for a core would spin."""

PATIENCE = 900
"""Seconds for a whole run on a machine that is busy."""

SECONDS = 12.0
"""For how long a stage is taken to last that the run beside it has not: an engine starts then, or is at work."""

START = "start"
"""In the place of a stage: before the first one has done anything."""

VICTIMS = {"run": "", "child": "dpo_data.child", "engine": "EngineCore", "flow": ""}
"""What gets the signal: the process that was begun, or one below it whose command line says so."""

TOPS = {"run": "go on with `dpo-data run", "flow": "go on with `python"}
"""Of these the process that was begun, and what it says when it is asked to end."""


@dataclass(frozen=True)
class Case:
    """What is run in a folder: a recipe, in which {run} is the run's name, with more variables of the environment."""

    folder: Path
    recipe: str
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ("-m", "dpo_data.cli", "run")

    def begin(self, run: RunDir, mark: str = "") -> "subprocess.Popen[str]":
        """The run in a process of its own, which goes on where it was. Marked, it has its own folder of temporary files."""
        temp = {}
        if mark:
            _temp(mark).mkdir(exist_ok=True)
            temp = {"TMPDIR": str(_temp(mark))}
        file = self.folder / f"{run.path.name}.toml"
        file.write_text(self.recipe.replace("{run}", run.path.name))
        return subprocess.Popen(
            [sys.executable, *self.command, file.name, "--run", run.path.name],
            cwd=self.folder,
            env={**os.environ, **ONE_CORE, **self.env, **temp, MARK: mark, "PYTHONFAULTHANDLER": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Injected:
    """One fault, the stage that it met, and why it was not survived; "" where it was."""

    fault: str
    stage: str
    seed: int
    why: str = ""


@dataclass(frozen=True)
class Shot:
    """One signal to be sent: to whom, and in which stage. The seed decides how far into it."""

    victim: str
    number: signal.Signals
    stage: str
    seed: int

    @property
    def fault(self) -> str:
        return f"{self.number.name} of the {self.victim}"

    @property
    def share(self) -> float:
        return random.Random(f"{self.fault} {self.stage} {self.seed}").random()


def whole(case: Case, name: str = "whole") -> RunDir:
    """A run that nobody touches."""
    run = RunDir(case.folder / name)
    process = case.begin(run)
    told = ended(process)
    assert process.returncode == 0, told
    return run


def until(case: Case, name: str, stage: str) -> RunDir:
    """A run that nobody touches before that stage is complete; then it is asked to end."""
    run = RunDir(case.folder / name)
    with case.begin(run) as process:
        complete = _until(lambda: run.stage(stage).manifest is not None, process, every=0.05)
        process.terminate()
        told = ended(process)
    assert complete, told
    return run


def ended(process: "subprocess.Popen[str]", patience: float = PATIENCE) -> str:
    """What a run has said when it has ended. One that hangs is aborted, and says where each of its threads stood."""
    try:
        return process.communicate(timeout=patience)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return f"it hung for {patience:g} s: {process.communicate()[1]}"


def chain(case: Case, name: str, shots: Iterable[Shot], like: RunDir) -> list[Injected]:
    """Faults one after the other in one run, which goes on after each and is run to its end after the last. A shot for which
    the run was over before is none."""
    run, found = RunDir(case.folder / name), []
    for shot in shots:
        lasted = (like.stage(shot.stage).manifest or {}).get("seconds", SECONDS)
        stage, why = strike(case, run, shot, shot.share * lasted)
        if stage:
            found.append(Injected(shot.fault, stage, shot.seed, why))
    why = finish(case, run, like)
    return [replace(one, why=one.why or why) for one in found]


def chains(case: Case, name: str, shots: Iterable[Iterable[Shot]], like: RunDir) -> list[Injected]:
    """Chains, each in a run of its own, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda one: chain(case, f"{name}-{one[0]}", one[1], like), enumerate(shots, 1))
        return [each for of_chain in found for each in of_chain]


def strike(case: Case, run: RunDir, shot: Shot, moment: float) -> tuple[str, str]:
    """Begin the run, and send the signal so many seconds into the stage. Returns the stage that was under way, "" where the run
    was over, and what is wrong with how it ended."""
    mark = uuid.uuid4().hex
    process = case.begin(run, mark)
    with process:
        if _until(lambda: _is_at(run, shot.stage, process), process):
            time.sleep(moment)
        struck = _struck(process, VICTIMS[shot.victim], shot.number)
        begun = (name for name in FOLDERS if (run.stage(name).path / "recipe.json").exists())
        under_way = next((name for name in begun if not run.stage(name).manifest), "")
        told = ended(process)
    stage = under_way or shot.stage
    if found := left(mark):
        return stage, f"left behind: {found}"
    let_go = process.returncode == -signal.SIGTERM and not left_by(run.path)
    if (let_go or (process.returncode == 0 and not under_way)) and (not struck or shot.victim in TOPS):
        return "", ""
    if not struck:
        return stage, f"it ended before: {told}"
    return stage, _end(shot, process.returncode, told)


def finish(case: Case, run: RunDir, like: RunDir) -> str:
    """Run to the end, and say what is wrong with that; "" for nothing."""
    mark = uuid.uuid4().hex
    with case.begin(run, mark) as process:
        told = ended(process)
    if process.returncode:
        return f"run again, it ended with {process.returncode}: {told}"
    if not all(rows(run)[name] == content for name, content in rows(like).items()):
        return "its rows are others"
    if temporary := [str(path) for path in run.path.rglob("*") if path.name.endswith(".tmp")]:
        return f"temporary files were left: {temporary}"
    found = left(mark)
    return f"left behind: {found}" if found else ""


def starts(case: Case, count: int) -> list[Injected]:
    """SIGTERM or SIGHUP at random moments of twice the time until a run is at work, two at a time. No such run may go on."""
    run, began = RunDir(case.folder / "start"), time.monotonic()
    with case.begin(run) as process:
        _until(lambda: _is_at(run, "sample", process), process)
        lasted = time.monotonic() - began
        process.kill()
    with ThreadPoolExecutor(2) as pool:
        return [one for one in pool.map(lambda seed: _started(case, seed, 2 * lasted), range(count)) if one]


def _started(case: Case, seed: int, within: float) -> Injected | None:
    """One of them; None where the run was over before."""
    number, mark = (signal.SIGTERM, signal.SIGHUP)[seed % 2], uuid.uuid4().hex
    shot = Shot("run", number, START, seed)
    process = case.begin(RunDir(case.folder / f"start-{seed}"), mark)
    time.sleep(shot.share * within)
    over = process.poll() is not None
    process.send_signal(number)
    told = ended(process)
    if over:
        return None
    why = "" if process.returncode == -number and not told else _end(shot, process.returncode, told)  # or it did not listen yet
    return Injected(shot.fault, START, seed, f"left behind: {found}" if (found := left(mark)) else why)


def rows(run: RunDir) -> dict[str, bytes]:
    """All files of rows of the stages up to the pairs, by name."""
    stages = [run.stage(name).path for name in ("sample", "rank", "pair")]
    return {str(path.relative_to(run.path)): path.read_bytes() for stage in stages for path in stage.rglob("*.parquet")}


def _is_at(run: RunDir, stage: str, process: "subprocess.Popen[str]") -> bool:
    """Whether the process is at work in the run directory, and the stage has begun."""
    lock = run.path / FILE
    return f'"pid": {process.pid},' in (lock.read_text() if lock.exists() else "") and run.stage(stage).recipe is not None


def _struck(process: "subprocess.Popen[str]", says: str, number: signal.Signals) -> bool:
    """Send the signal to the victim as soon as it is there. False where the run is over before."""

    def struck() -> bool:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            top = psutil.Process(process.pid)
            below = top.children(recursive=True) if says else [top]
            for one in [one for one in below if not says or says in " ".join(one.cmdline())][-1:]:
                one.send_signal(number)
                return True
        return False

    return _until(struck, process, every=0.05)


def _until(happened: Callable[[], bool], process: "subprocess.Popen[str]", every: float = 0.002) -> bool:
    """Whether it happens before the process ends; a look `every` so many seconds."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if happened():
            return True
        time.sleep(every)
    return False


def _end(shot: Shot, code: int, told: str) -> str:
    """What is wrong with how a run has ended: whoever is killed says nothing, whoever is asked to end says how to go on, and
    who has lost a child goes on without, or says so."""
    if "Traceback" in told:
        return f"a traceback: {told}"
    stopped = -signal.SIGKILL if shot.number == signal.SIGKILL else 128 + shot.number
    if code not in ({stopped} if shot.victim in TOPS else {0, 4}):
        return f"it ended with {code}: {told}"
    return "" if code != 128 + shot.number or TOPS[shot.victim] in told else f"it did not say how to go on: {told}"


def left(mark: str) -> list[str]:
    """What is still there, after a moment, of all that was started with the mark in its environment: processes, and temporary
    files."""
    end = time.monotonic() + 10
    while found := [*_marked(f"{MARK}={mark}".encode()), *map(str, _temp(mark).rglob("*"))]:
        if time.monotonic() > end:
            return found
        time.sleep(0.05)
    with suppress(FileNotFoundError):  # what Prefect's worker starts has the worker's
        _temp(mark).rmdir()
    return []


def _temp(mark: str) -> Path:
    """A short path: a socket's may have 107 bytes."""
    return Path(tempfile.gettempdir(), f"faults-{mark[:8]}")


def _marked(mark: bytes) -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            if mark in environment(process.pid).split(b"\0"):
                yield " ".join(process.cmdline())
        except (OSError, psutil.Error):
            continue
