"""A program in a terminal of its own, and somebody who types."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Typist:
    """Types into a terminal of `columns` × `lines` and reads what comes."""

    def __init__(self, pid: int, terminal: int):
        self.pid, self._terminal = pid, terminal
        self.seen = ""
        self._bytes = b""

    def wait_for(self, what: str, seconds: float = 60) -> str:
        """Everything that came up to what was waited for; what follows is for the next to wait for."""
        until = time.monotonic() + seconds
        while not (found := re.search(what, self.seen, re.DOTALL)):
            assert time.monotonic() < until and self._read(), f"{what!r} did not come: {self.seen[-2000:]!r}"
        came, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return came

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def ends(self) -> int:
        """Reads until the program ends. Its exit code, or the negative number of the signal that killed it."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.ends()

    def _read(self) -> bool:
        if not select.select([self._terminal], [], [], 0.5)[0]:
            return True
        with suppress(OSError):  # the other end is closed
            if came := os.read(self._terminal, 65536):
                self._bytes += came
                whole = self._bytes.decode(errors="ignore")
                self._bytes = b"" if whole.encode() == self._bytes else self._bytes[len(whole.encode()) :]
                self.seen += whole
                return True
        return False


@contextmanager
def typing(command: list[str], columns: int = 100, lines: int = 40) -> Iterator[Typist]:
    """The program while the block runs."""
    pid, terminal = pty.fork()
    if not pid:
        os.execve(command[0], command, {**os.environ, "COLUMNS": "", "PYTHONUTF8": "1"})
    typist = Typist(pid, terminal)
    typist.resize(columns, lines)
    try:
        yield typist
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


CLI = [sys.executable, "-m", "dpo_data.cli"]
