"""A child process that runs one function, and never outlives its parent.

An engine or a trainer holds a GPU, threads and memory that only the end of a process gives back. So each runs in a child, in a
process group of its own. The two talk in JSON lines over pipes; what the child prints goes to a logger of the parent's.
When the parent dies in whatever way, the child's input closes, and a watcher beside the child ends it with all that it
started; when the child dies, the parent ends what is left: nothing is left behind, whichever of them is killed. What has left
the child's group is known by a mark in its environment, and temporary files by their folder: a child has one of its own,
which goes with it, since vLLM leaves sockets there and merged weights are large.
"""

import atexit
import importlib
import json
import logging
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from dpo_data.errors import EngineError, OutOfDisk, OutOfMemory

MARK = "DPO_DATA_CHILD"
"""The variable of the environment that marks a child, and all that it starts."""
PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
"""Variables of a child's Python: what it prints comes at once, and no module is found in the working folder."""
LINE = 65_536
"""Bytes of a printed line, from which it is cut: nobody's output is held whole."""
MEMORY = re.compile(
    "out of memory|OutOfMemoryError|can't allocate memory|No available memory for the cache blocks"
    "|KV cache is needed, which is larger than|less than desired GPU memory utilization"
)


class Child:
    """Runs `target` (`package.module:function`) in a new process; the function is given a `Parent`. Modules of the working
    folder are not found there: they may have come with a stranger's recipe. Its temporary files are in a folder of its own in
    `temp`, or where this process has its own."""

    def __init__(self, target: str, logger: str, env: dict[str, str] | None = None, temp: str | None = None):
        self._temp = _made(temp)
        up, theirs_up = os.pipe()
        theirs_down, down = os.pipe()
        self._last: deque[str] = deque(maxlen=200)
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []
        self._mark = uuid.uuid4().hex
        own = {MARK: self._mark, "TMPDIR": self._temp}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpo_data.child", target, str(theirs_down), str(theirs_up)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_down, theirs_up),
            start_new_session=True,
            env={**os.environ, **PYTHON, **_compiled(), **(env or {}), **own},
        )
        os.close(theirs_down)
        os.close(theirs_up)
        self._down = os.fdopen(down, "w", encoding="utf-8")
        self._up = os.fdopen(up, "rb", buffering=0)
        self._reader = threading.Thread(target=self._forward, args=(logging.getLogger(logger),), daemon=True)
        self._reader.start()
        self._sweeper = threading.Thread(target=self._sweep, daemon=True)
        self._sweeper.start()
        atexit.register(self.close)  # while this interpreter's threads still run: later nothing can be done

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *messages: Any) -> None:
        """Send JSON values. A child that is gone is noticed by `receive`, not here."""
        with suppress(BrokenPipeError):
            _write(self._down, messages)

    def receive(self, limit: float | None = None) -> Any:
        """The child's next JSON value; waits for it, at most `limit` seconds. Raises EngineError, with the child's last words,
        where it died, or OutOfDisk where it says that; and TimeoutError where it takes longer: it is still at it then, and may
        be closed."""
        if self._heard(limit):
            return json.loads(self._lines.popleft())
        self.close()
        cause = self.root_cause()
        told = f"The child process {self.ended}{': ' + cause if cause else ''}"
        if "No space left on device" in cause:
            raise OutOfDisk(told, "Free some space and run again: finished shards are kept.")
        kind = OutOfMemory if lacks_memory(cause) else EngineError
        raise kind(told, "Run again to go on: finished shards are kept. The whole log is in logs/run.log of the run directory.")

    @property
    def ended(self) -> str:
        """How a child that is closed came to its end: `was killed by SIGKILL`, or `ended with exit code 7`."""
        code = self._process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End the child and everything that it started, at once."""
        atexit.unregister(self.close)
        if self._process.returncode is None:  # once reaped, its id may be somebody else's
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._sweeper.join()
        self._reader.join(timeout=2)
        for pipe in (self._down, self._up):
            with suppress(BrokenPipeError):
                pipe.close()

    def _heard(self, limit: float | None) -> bool:
        """Wait for a whole line of the child's. False where it has died before one. Raises TimeoutError."""
        until = None if limit is None else time.monotonic() + limit
        ready = select.poll()
        ready.register(self._up, select.POLLIN)
        while not self._lines:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            if not ready.poll(left):
                raise TimeoutError(f"the child took longer than {limit:g} s")
            said = self._up.read(LINE)
            if not said:
                return False
            *whole, begun = said.split(b"\n")
            if whole:
                self._lines.extend([b"".join([*self._begun, whole[0]]), *whole[1:]])
                self._begun.clear()
            self._begun.append(begun)
        return True

    def _forward(self, logger: logging.Logger) -> None:
        assert self._process.stdout is not None
        for raw in iter(partial(self._process.stdout.readline, LINE), b""):
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._last.append(line)
                logger.info(line)

    def _sweep(self) -> None:
        """When the child dies, end what it started, which may hold its pipes open. Not reaped yet (WNOWAIT), its id is ours."""
        with suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            os.killpg(self._process.pid, signal.SIGKILL)
        end_marked(MARK, self._mark)
        _remove(self._temp)

    def root_cause(self) -> str:
        """The first exception in what the child printed last, on one line; its last line where there is none."""
        lines = list(self._last)
        found = re.search(r"\b[A-Z]\w*(Error|Exception): .+(\n[ \t].+)*", "\n".join(lines))  # a long one goes on, indented
        return " ".join((found.group(0) if found else "".join(lines[-1:])).split())[:500]


class Parent:
    """The child's side of the pipes. Messages are read by a thread, so the parent never waits for a busy child."""

    def __init__(self, down: int, up: int):
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._up = os.fdopen(up, "w", encoding="utf-8")
        threading.Thread(target=self._listen, args=(os.fdopen(down, "r", encoding="utf-8"),), daemon=True).start()

    def send(self, *messages: Any) -> None:
        _write(self._up, messages)

    def receive(self) -> Any:
        """The next message; blocks."""
        return self._inbox.get()

    def received(self) -> Iterator[Any]:
        """The messages that are here already."""
        while not self._inbox.empty():
            yield self._inbox.get()

    def _listen(self, lines: Any) -> None:
        for line in lines:
            self._inbox.put(json.loads(line))


def _write(pipe: TextIO, messages: Iterable[Any]) -> None:
    """A line each, all at once."""
    pipe.write("".join(json.dumps(message, ensure_ascii=True) + "\n" for message in messages))
    pipe.flush()


def lacks_memory(cause: str) -> bool:
    """Whether an error of torch's or of vLLM's says that the memory does not suffice."""
    return MEMORY.search(cause) is not None


def end_marked(variable: str, value: str) -> None:
    """Kill every other process that was started with this variable in its environment, until no new one is found: those which
    start others are found again, though they have left their group and their session."""
    mark, seen = f"{variable}={value}".encode(), {os.getpid()}
    while found := set(_marked(mark)) - seen:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen |= found


def environment(pid: int | str) -> bytes:
    """The variables with which a process was started, each with a zero byte behind it. While it is being started there are none
    to be read, for execve(2) takes the old ones away before it lays out the new ones, and a busy machine may let it wait there:
    fields 50 and 51 of /proc/PID/stat, where they begin and end, are 0 then, or change (proc(5)). So this waits, five seconds
    or a little more. Raises OSError where it is somebody else's, has ended, or is the kernel's own."""
    for looks in range(5000):
        with open(f"/proc/{pid}/environ", "rb") as file:
            if read := file.read():
                return read
        os.readlink(f"/proc/{pid}/exe")
        begins, ends = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[47:49]
        if looks and begins == ends != "0":
            break
        time.sleep(0.001)
    return b""


def _marked(mark: bytes) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if mark in environment(name).split(b"\0"):
                    yield int(name)


def _watch(down: int) -> None:
    """Start a process in this group that waits for the parent's end, and then ends the child and all that it started. A thread
    could not: none runs while code outside of Python, such as a regular expression's, keeps the interpreter's lock."""
    if begun := os.fork():
        os.waitpid(begun, 0)
        return
    if os.fork():  # so that the watcher is no child of the child's
        os._exit(0)
    hung_up = select.poll()
    hung_up.register(down, 0)
    hung_up.poll()
    end_marked(MARK, os.environ[MARK])
    _remove(os.environ["TMPDIR"])
    os.killpg(0, signal.SIGKILL)


def _compiled() -> dict[str, str]:
    """Where torch keeps what it has compiled: not among what goes with a child, lest it compile that anew each time. Its C++
    headers it keeps there nevertheless (torch/_inductor/codecache.py, _HEADER_DIR), so they are not compiled beforehand: that
    took vLLM six seconds of each start on a CPU, though its kernels were there. Not the first of the variables either: torch
    sets it again, and setproctitle finds a process by where its first variable is."""
    folder, headers = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
    return {
        folder: os.environ.get(folder) or f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}",
        headers: os.environ.get(headers) or "0",
    }


def _made(temp: str | None) -> str:
    try:
        return tempfile.mkdtemp(prefix="dpo-data-", dir=temp)
    except OSError as error:
        raise OutOfDisk(
            f"No folder for temporary files can be made: {error}",
            "Free some space there, or set TMPDIR to a folder on another disk, and run again: finished shards are kept.",
        ) from None


def _remove(folder: str) -> None:
    """Remove a folder that those who were killed a moment ago may still be writing to."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _main(target: str, down: str, up: str) -> None:
    for pipe in (int(down), int(up)):
        os.set_inheritable(pipe, False)
    _watch(int(down))
    module, function = target.split(":")
    work: Callable[[Parent], None] = getattr(importlib.import_module(module), function)
    work(Parent(int(down), int(up)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
