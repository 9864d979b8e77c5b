"""A child answers, dies with its reason told, and never outlives its parent."""

import ctypes
import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpo_data.child import LINE, Child, Parent, environment
from dpo_data.errors import DpoDataError, EngineError, OutOfDisk, OutOfMemory

HERE = Path(__file__).parent
SLEEP = "import time; time.sleep(600)"
SOON = 30.0  # seconds: what must happen at once may take this long on a machine that is busy


def echo(parent: Parent) -> None:
    """Answers each message with itself, and what waits beside it."""
    while True:
        first = parent.receive()
        time.sleep(first.get("wait", 0))
        parent.send({"heard": [first, *parent.received()]})


def fail(parent: Parent) -> None:
    print("starting", flush=True)
    print("INFO ValueError happens to be named in passing", flush=True)
    try:
        raise OSError("the disk\n  is on fire")
    except OSError as error:
        raise RuntimeError("cannot go on") from error


def leave(parent: Parent) -> None:
    print("my last words", flush=True)
    sys.exit(7)


def fill_the_disk(parent: Parent) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")


def fill_the_memory(parent: Parent) -> None:
    raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def half_a_line(parent: Parent) -> None:
    parent._up.write('{"cut": ')
    parent._up.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def talk(parent: Parent) -> None:
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    os.write(1, b"not UTF-8: \xff\n")
    parent.send("said")
    parent.receive()


def family(parent: Parent) -> None:
    """Starts a process that holds all the pipes, as a fork does, tells both ids, and waits; or goes as it is told."""
    grandchild = subprocess.Popen([sys.executable, "-c", SLEEP], pass_fds=[parent._up.fileno()])
    parent.send([os.getpid(), grandchild.pid])
    if parent.receive() == "raise":
        raise ValueError("a worker is gone")
    os.kill(os.getpid(), signal.SIGKILL)


def runaway(parent: Parent) -> None:
    """Starts a process in a session of its own, and such a fork, which holds all the pipes; tells their ids, does as told."""
    left = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True).pid
    forked = os.fork()
    if not forked:
        os.setsid()
        time.sleep(600)
    parent.send([os.getpid(), left, forked])
    if parent.receive() == "block":
        ctypes.PyDLL(None).sleep(600)  # in C, with the interpreter's lock: no thread of Python's runs
    os._exit(5)


def temporary(parent: Parent) -> None:
    """Leaves files where temporary ones are, as does what it has started in a session of its own."""
    folder = Path(tempfile.mkdtemp())
    (folder / "merged.safetensors").write_bytes(b"weights")
    code = "import pathlib, tempfile, time\nfor at in range(10**6): pathlib.Path(tempfile.gettempdir(), str(at)).touch()"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not Path(tempfile.gettempdir(), "9").exists():
        time.sleep(0.01)
    parent.send(str(folder.parent))
    if parent.receive() == "fail":
        sys.exit(7)


def compiled(parent: Parent) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    parent.send(cache_dir())


def half_an_answer(parent: Parent) -> None:
    parent.send("whole")
    parent._up.write('{"cut": ')
    parent._up.flush()
    parent.receive()
    parent._up.write("1}\n")
    parent._up.flush()
    parent.receive()


def endless_line(parent: Parent) -> None:
    for _ in range(64):
        os.write(1, b"x" * LINE)
    parent.send("said")
    parent.receive()


def gone(pids: list[int]) -> bool:
    """Whether all these processes end soon. A zombie has ended: it only awaits whoever adopted it."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Child]]:
    """Starts a function of this file as a child."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    children: list[Child] = []

    def make(function: str) -> Child:
        children.append(Child(f"test_child:{function}", logger="of_child"))
        return children[-1]

    yield make
    for child in children:
        child.close()


def died(child: Child) -> EngineError:
    """The error of a child that dies. A thread, so that a parent which waits for ever fails the test and not the run."""
    errors: list[EngineError] = []

    def wait() -> None:
        try:
            child.receive()
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(SOON)
    assert errors, "the parent still waits for a dead child"
    return errors[0]


def test_answers_whatever_json_can_say(start: Callable[[str], Child]) -> None:
    child = start("echo")
    message = {"text": 'two\nlines, "quotes", ünïcödé, \ud83d alone', "numbers": [1, 0.5, None], "long": "x" * 200_000}
    child.send(message)
    assert child.receive() == {"heard": [message]}


def test_a_busy_child_does_not_hold_up_its_parent(start: Callable[[str], Child]) -> None:
    child = start("echo")
    many = [{"at": at, "long": "x" * 10_000} for at in range(100)]  # far more than a pipe holds
    child.send({"wait": 1.0})
    for message in many:
        child.send(message)
    heard: list[dict[str, object]] = []
    while len(heard) < 101:
        heard += child.receive()["heard"]
    assert heard[1:] == many


def test_a_child_that_raises_tells_the_first_cause(start: Callable[[str], Child]) -> None:
    error = died(start("fail"))
    assert "exit code 1" in str(error) and "OSError: the disk is on fire" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("function", "kind", "says"),
    [
        ("fill_the_disk", OutOfDisk, r"No space left on device: 'model.safetensors'\. Free some space and run again"),
        ("fill_the_memory", OutOfMemory, r"MemoryError: CUDA out of memory\. Tried .*\. Run again to go on"),
    ],
)
def test_what_is_full_has_its_own_error(
    start: Callable[[str], Child], function: str, kind: type[DpoDataError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        start(function).receive()


def test_a_child_that_exits_tells_its_last_words(start: Callable[[str], Child]) -> None:
    assert "exit code 7: my last words" in str(died(start("leave")))


def test_a_child_killed_in_the_middle_of_a_line(start: Callable[[str], Child]) -> None:
    assert "killed by SIGKILL" in str(died(start("half_a_line")))


@pytest.mark.parametrize(("how", "told"), [("raise", "ValueError: a worker is gone"), ("kill", "killed by SIGKILL")])
def test_a_grandchild_that_holds_the_pipes_neither_hides_a_death_nor_survives(
    start: Callable[[str], Child], how: str, told: str
) -> None:
    child = start("family")
    pids = child.receive()
    child.send(how)
    assert told in str(died(child))
    assert gone(pids)


def test_close_leaves_nothing_and_may_be_repeated(start: Callable[[str], Child]) -> None:
    child = start("family")
    pids = child.receive()
    child.close()
    assert gone(pids)
    child.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_parent(how: signal.Signals) -> None:
    code = "from dpo_data.child import Child; c = Child('test_child:family', 'x'); print(*c.receive(), flush=True); c.receive()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(SOON)
    assert gone(pids)


def test_an_answer_that_does_not_come_in_time_is_waited_for_no_longer(start: Callable[[str], Child]) -> None:
    child = start("half_an_answer")
    assert child.receive(SOON) == "whole"
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"longer than 0.3 s"):
            child.receive(0.3)
        assert 0.3 <= time.monotonic() - began < SOON
    child.send("go on")
    assert child.receive(SOON) == {"cut": 1}


def test_a_death_is_told_before_its_time_is_over(start: Callable[[str], Child]) -> None:
    child = start("leave")
    with pytest.raises(EngineError, match="exit code 7"):
        child.receive(10 * SOON)
    assert child.ended == "ended with exit code 7"


@pytest.mark.parametrize("how", ["exit", "close", "close while it blocks"])
def test_what_has_left_the_group_of_a_child_does_not_survive_it(start: Callable[[str], Child], how: str) -> None:
    child = start("runaway")
    pids = child.receive()
    if how == "exit":
        child.send("exit")
        assert "exit code 5" in str(died(child))
    else:
        child.send("block")
        time.sleep(0.5 if "block" in how else 0)
        child.close()
    assert gone(pids)


def test_the_variables_of_a_process_that_is_being_started_are_waited_for() -> None:
    """Read once, there are none in one to thirty of a hundred: such a process was found by nobody, and left behind."""
    for at in range(300):
        process = subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, "STARTED": str(at)})
        try:
            assert f"STARTED={at}".encode() in environment(process.pid).split(b"\0")
        finally:
            process.kill()
            process.wait()


def test_a_process_without_variables_or_without_a_program_is_not_waited_for() -> None:
    bare = subprocess.Popen([sys.executable, "-c", f"print(flush=True); {SLEEP}"], env={}, stdout=subprocess.PIPE)
    assert bare.stdout and bare.stdout.readline() == b"\n"
    began = time.monotonic()
    assert environment(bare.pid) == b""
    bare.kill()
    os.waitid(os.P_PID, bare.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):  # a zombie, and none
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            environment(bare.pid)
        bare.wait()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_deep_in_c_and_what_has_left_its_group_do_not_outlive_the_parent(how: signal.Signals) -> None:
    code = (
        "from dpo_data.child import Child; c = Child('test_child:runaway', 'x'); "
        "print(*c.receive(), flush=True); c.send('block'); c.receive()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.5)  # so that it blocks
    assert len(pids) == 3 and all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(SOON)
    assert gone(pids)


@pytest.mark.parametrize("how", ["close", "fail"])
def test_temporary_files_of_a_child_go_with_it(start: Callable[[str], Child], how: str) -> None:
    child = start("temporary")
    folder = Path(child.receive())
    assert folder.parent == Path(tempfile.gettempdir()) and len(list(folder.iterdir())) >= 10
    if how == "fail":
        child.send("fail")
        died(child)
    else:
        child.close()
    assert not folder.exists()


def test_where_no_folder_for_them_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(OutOfDisk, match=r"can be made: .*No such file or directory: .* set TMPDIR"):
        Child("test_child:echo", "x", temp=str(tmp_path / "nowhere"))


def test_but_what_torch_has_compiled_is_kept(start: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(start("compiled").receive()).parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    assert start("compiled").receive() == "/somewhere"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_and_with_its_parent(how: signal.Signals | None) -> None:
    """Which is sent a signal, or comes to its end without a word to the child."""
    code = "from dpo_data.child import Child; c = Child('test_child:temporary', 'x'); print(c.receive(), flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=environment) as parent:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        assert folder.is_dir()
        if how:
            parent.send_signal(how)
        parent.communicate("\n", timeout=SOON)
    assert how or parent.returncode == 0
    until = time.monotonic() + SOON
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()


def test_a_line_without_an_end_is_told_in_parts(start: Callable[[str], Child], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="of_child")
    child = start("endless_line")
    assert child.receive() == "said"
    child.close()
    assert [len(line.message) for line in caplog.records] == [LINE] * 64


def test_what_a_child_prints_goes_to_the_logger(start: Callable[[str], Child], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="of_child")
    child = start("talk")
    assert child.receive() == "said"
    child.close()
    assert [line.message for line in caplog.records] == ["to stdout", "to stderr", "not UTF-8: \ufffd"]
    assert {line.name for line in caplog.records} == {"of_child"}
