"""A child process that runs one function, and never outlives its parent.

An engine or a trainer holds a GPU, threads and memory that only the end of a process gives back. So each runs in a child, in a
process group of its own. The two talk in JSON lines over pipes; what the child prints goes to a logger of the parent's.
When the parent dies in whatever way, the child's input closes and the child kills its whole group; when the child dies, the
parent kills what is left of the group: nothing is left behind, whichever of them is killed.
"""

import importlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from dpo_data.errors import EngineError


class Child:
    """Runs `target` (`package.module:function`) in a new process; the function is given a `Parent`."""

    def __init__(self, target: str, logger: str, env: dict[str, str] | None = None):
        up, theirs_up = os.pipe()
        theirs_down, down = os.pipe()
        self._last: deque[str] = deque(maxlen=200)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dpo_data.child", target, str(theirs_down), str(theirs_up)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_down, theirs_up),
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        os.close(theirs_down)
        os.close(theirs_up)
        self._down = os.fdopen(down, "w", encoding="utf-8")
        self._up = os.fdopen(up, "r", encoding="utf-8")
        self._reader = threading.Thread(target=self._forward, args=(logging.getLogger(logger),), daemon=True)
        self._reader.start()
        threading.Thread(target=self._sweep, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """Send one JSON value. A child that is gone is noticed by `receive`, not here."""
        with suppress(BrokenPipeError):
            self._down.write(json.dumps(message, ensure_ascii=True) + "\n")
            self._down.flush()

    def receive(self) -> Any:
        """The child's next JSON value; blocks. Raises EngineError, with the child's last words, where it died."""
        line = self._up.readline()
        if line.endswith("\n"):
            return json.loads(line)
        self.close()
        code = self._process.returncode
        raise EngineError(
            f"The child process {'was killed by ' + signal.Signals(-code).name if code < 0 else f'ended with exit code {code}'}"
            f"{': ' + self.root_cause() if self.root_cause() else ''}",
            "Run again to go on: finished shards are kept. The whole log is in logs/run.log of the run directory.",
        )

    def close(self) -> None:
        """End the child and everything that it started, at once."""
        if self._process.returncode is None:  # once reaped, its id may be somebody else's
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(timeout=2)
        for pipe in (self._down, self._up):
            with suppress(BrokenPipeError):
                pipe.close()

    def _forward(self, logger: logging.Logger) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._last.append(line)
                logger.info(line)

    def _sweep(self) -> None:
        """When the child dies, end what it started, which may hold its pipes open. Not reaped yet (WNOWAIT), its id is ours."""
        with suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            os.killpg(self._process.pid, signal.SIGKILL)

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

    def send(self, message: Any) -> None:
        self._up.write(json.dumps(message, ensure_ascii=True) + "\n")
        self._up.flush()

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
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _main(target: str, down: str, up: str) -> None:
    for pipe in (int(down), int(up)):
        os.set_inheritable(pipe, False)
    module, function = target.split(":")
    work: Callable[[Parent], None] = getattr(importlib.import_module(module), function)
    work(Parent(int(down), int(up)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
