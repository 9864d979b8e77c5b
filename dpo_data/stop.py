"""What ends a process from outside, Ctrl-C, SIGTERM or a closed terminal, is raised in its main thread, where it is heard."""

import _thread
import signal
import sys
import time
from types import FrameType
from typing import Any

AGAIN = 0.01
"""Seconds until a signal that came at a bad moment is sent once more."""


heard = 0
"""The number of the last signal that was raised; whatever error comes after it may be what somebody's code has made of it."""


class Stopped(BaseException):
    """By SIGTERM or a closed terminal. No KeyboardInterrupt, after which Python may end by SIGINT, whatever its exit code."""

    def __init__(self, number: int):
        self.number, self.exit_code = number, 128 + number


def listen() -> None:
    """Have SIGTERM and SIGHUP raise Stopped, and SIGINT KeyboardInterrupt, where none of them is ignored, as nohup has it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    main = _thread.get_ident()  # Python's handlers run in the main thread alone

    def unraisable(unraised: Any) -> None:
        """What is raised in a weak reference's callback Python drops, and says so: a signal must not be lost there. The rest is
        not worth a word: what was half made as the signal came cannot be taken apart in order."""
        if isinstance(unraised.exc_value, KeyboardInterrupt | Stopped) and not sys.is_finalizing():
            _thread.start_new_thread(_once_more, (number, main))

    if _is_delicate(frame):
        _thread.start_new_thread(_once_more, (number, main))  # threading's own start takes locks, which may be held here
        return
    global heard
    heard, sys.unraisablehook = number, unraisable
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether an exception would do harm here: in a finalizer it is dropped; in a lock's `__enter__` or `__exit__` it leaves
    the lock taken for good, while other threads wait for it and are waited for."""
    if frame and frame.f_code.co_name in ("__enter__", "__exit__"):
        return True
    while frame and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _once_more(number: int, main: int) -> None:
    time.sleep(AGAIN)
    signal.pthread_kill(main, number)
