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
from striking import MARK, START, Case, Injected, Shot, ended, left, rows, strike, whole

from dpo_data.rundir import RunDir

ROOT = Path(__file__).parents[1]


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
    assert len([one for one in injected if one.stage != START]) >= 50
    assert {one.stage for one in injected} == {START, "sample", "rank", "pair", "train", "evaluate", "publish"}
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


DEAF = """import signal
from dpo_data import cli, stop
stop.listen = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
cli.script()
"""


def test_a_run_that_goes_on_as_if_nobody_had_asked_is_not_survived(case: Case) -> None:
    deaf = Case(case.folder, case.recipe, command=("-c", DEAF, "run"))
    shot = Shot("run", signal.SIGTERM, "sample", 0)
    assert strike(deaf, RunDir(case.folder / "deaf"), shot, 0.1) == ("sample", "it ended with 0: ")


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
from dpo_data import stop
class Half:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.whole = True
    def __del__(self):
        self.whole
stop.listen()
try:
    Half()
except stop.Stopped as stopped:
    print(stopped.number)
"""


def test_what_was_half_made_as_the_signal_came_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", HALF], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("15\n", "")


COMING = '''import os, sys, threading, time, weakref
from dpo_data import stop
def come():
    os.kill(os.getpid(), int(sys.argv[1]))
class First:
    def __del__(self):
        come()
class Later:
    def __del__(self):
        time.sleep(0.1)
        print("finalized")
class Lock:
    def __init__(self):
        self.lock = threading.Lock()
    def acquire(self):
        self.lock.acquire()
        if sys.argv[2] == "acquire":
            os.kill(os.getpid(), int(sys.argv[1]))
    def release(self):
        if sys.argv[2] == "release":
            os.kill(os.getpid(), int(sys.argv[1]))
        self.lock.release()
    def __enter__(self):
        self.lock.acquire()
        os.kill(os.getpid(), int(sys.argv[1]))
    def __exit__(self, *raised):
        self.lock.release()
IMPORTING = """def take(lock):
    lock.acquire()
    os.kill(os.getpid(), int(sys.argv[1]))
    try:
        time.sleep(0.1)
    finally:
        lock.release()
"""
class Weak:
    pass
stop.listen()
lock = Lock()
try:
    if sys.argv[2] == "finalizer":
        finalized = [Later(), Later(), First()]
        del finalized[:]  # from its end
    elif sys.argv[2] == "dropped":
        for _ in range(3):
            try:
                come()
                time.sleep(60)
            except:
                print("dropped")
    elif sys.argv[2] == "callback":
        weak = Weak()
        called = weakref.ref(weak, lambda _: come())
        del weak
    elif sys.argv[2] == "import":
        exec(compile(IMPORTING, "<frozen importlib._bootstrap>", "exec"))
        take(lock.lock)
    elif sys.argv[2] == "with":
        with lock:
            time.sleep(60)
    else:
        lock.acquire()
        try:
            time.sleep(0.1)
        finally:
            lock.release()
    time.sleep(60)
except (KeyboardInterrupt, stop.Stopped) as stopped:
    stop.obeyed(stopped)
    print("locked" if lock.lock.locked() else type(stopped).__name__)
    del stopped
    time.sleep(0.1)
'''


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Stopped"), (signal.SIGHUP, "Stopped")]
)
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("finalizer", "finalized\nfinalized\n"),
        ("callback", ""),
        ("with", ""),
        ("acquire", ""),
        ("release", ""),
        ("import", ""),
        ("dropped", "dropped\n" * 3),
    ],
)
def test_a_signal_at_a_bad_moment_is_heard_and_leaves_no_lock_taken(
    number: signal.Signals, raised: str, where: str, said: str
) -> None:
    """Python drops what is raised in a finalizer or a weak reference's callback, as may others; where a lock was just taken, or
    is about to be let go, it takes the lock along."""
    command = [sys.executable, "-c", COMING, str(int(number)), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == (f"{said}{raised}\n", "")


MADE = """import os, signal, sys
from dpo_data import cli
from flows import deploy
class Named:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
def work(*given):
    type("Owner", (), {"named": Named()})
cli._doctor = deploy._serve = work
if sys.argv[1] == "deploy":
    sys.exit(deploy.main([]))
cli.script()
"""


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("doctor", 143, "dpo-data: stopped. What is finished is kept; go on with `dpo-data doctor`"),
        ("deploy", 130, "dpo-data deploy: stopped. Schedules and finished work are kept; go on with `dpo-data deploy`"),
    ],
)
def test_a_signal_of_which_python_makes_another_error_is_a_signal_still(command: str, code: int, told: str) -> None:
    """What is raised while a class is made comes out of 3.11 as a RuntimeError."""
    done = subprocess.run([sys.executable, "-c", MADE, command], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"\n{told}\n"


LATE = """import atexit, os, signal, sys, time
from dpo_data import cli
from flows import deploy
def late(*given):
    os.kill(os.getpid(), number)
    time.sleep(60)
cli._doctor = deploy._serve = lambda *given: print("done", flush=True)
number, command = int(sys.argv.pop(1)), sys.argv[1]
if sys.argv.pop() == "atexit":
    atexit.register(late)
else:
    sys.exit = late
if command == "deploy":
    sys.exit(deploy.main([]))
cli.script()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["exit", "atexit"])
@pytest.mark.parametrize("command", ["doctor", "deploy"])
def test_a_signal_that_comes_when_all_is_done_ends_what_is_left_of_the_process(
    command: str, when: str, number: signal.Signals
) -> None:
    line = [sys.executable, "-c", LATE, str(int(number)), command, when]
    done = subprocess.run(line, capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "done\n", "")


LOCKED = """import os, signal, sys
from llvmlite.binding import ffi
from dpo_data import cli
def struck():
    frame, callers = sys._getframe(), []
    while frame := frame.f_back:
        callers.append(frame.f_code.co_name)
    if "__del__" in callers and "_buckets" in callers:
        ffi.unregister_lock_callback(struck, nothing)
        os.kill(os.getpid(), signal.SIGTERM)
nothing = lambda: None
ffi.register_lock_callback(struck, nothing)
cli.script()
"""


def test_a_signal_that_takes_the_compilers_lock_along_ends_the_run(case: Case) -> None:
    """It comes in a finalizer of the compiler's, which has taken a lock that no other thread gets any more."""
    run = RunDir(case.folder / "locked")
    process = Case(case.folder, case.recipe, command=("-c", LOCKED, "run")).begin(run)
    told = ended(process, 120)
    assert process.returncode == 143, told
    assert told.strip() == "dpo-data: stopped. What is finished is kept; go on with `dpo-data run locked.toml --run locked`"
