"""What ends a process from outside, Ctrl-C, SIGTERM or a closed terminal, is raised in its main thread until it is obeyed."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

AGAIN = 0.01
"""Seconds until a signal is sent once more that came at a bad moment, or was dropped."""

LOCKING = ("__enter__", "__exit__", "acquire", "release")
"""The methods of a lock."""

IMPORTING = "<frozen importlib._bootstrap>"
"""What Python calls the file of its import system."""

_heard = 0
"""The number of the last signal that was raised."""
_obeyed = False

Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """By SIGTERM or a closed terminal. No KeyboardInterrupt, after which Python may end by SIGINT, whatever its exit code."""

    def __init__(self, number: int):
        self.number, self.exit_code = number, 128 + number

    def __del__(self) -> None:
        _dropped(self.number)


class Interrupted(KeyboardInterrupt):
    """By Ctrl-C."""

    exit_code = 128 + signal.SIGINT

    def __del__(self) -> None:
        _dropped(signal.SIGINT)


def listen() -> None:
    """Have SIGTERM and SIGHUP raise Stopped, and SIGINT Interrupted, where none of them is ignored, as nohup has it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def spared(handler: Handler, raised: type[BaseException]) -> Handler:
    """Somebody else's handler, which raises `raised`, without what Python makes of that at a bad moment: it is called a moment
    later then, and once more where what it raised was dropped."""

    def spare(number: int, frame: FrameType | None) -> None:
        global _heard
        if _is_delicate(frame):
            return _again(number)
        _heard = number
        sys.unraisablehook = lambda lost: _dropped(number) if isinstance(lost.exc_value, raised) else None
        handler(number, frame)

    return spare


def over() -> None:
    """Nothing is left that could be stopped: a signal ends the process by itself, as it does anyway once Python is being taken
    apart, which may take a while. What was raised now would be a traceback, or be dropped."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def obeyed(error: BaseException) -> int:
    """To be asked by who catches what was raised, and ends where a signal was. Returns its number, 0 where there was none:
    whatever error comes after a signal may be what somebody's code has made of it."""
    global _obeyed
    number = _heard or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
    _obeyed = _obeyed or bool(number)
    return number


def _stop(number: int, frame: FrameType | None) -> None:
    global _heard
    if _is_delicate(frame):
        return _again(number)
    # What was half made as the signal came cannot be taken apart in order, and Python would say so.
    _heard, sys.unraisablehook = number, lambda _: None
    raise Interrupted if number == signal.SIGINT else Stopped(number)


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether an exception would do harm here: in a finalizer it is dropped; while a lock is taken or let go, and where Python
    imports, which takes one by hand, the lock stays taken for good, while other threads wait for it and are waited for."""
    if frame and (frame.f_code.co_name in LOCKING or frame.f_code.co_filename == IMPORTING):
        return True
    while frame and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _dropped(number: int) -> None:
    """What was raised is gone. Unless it was obeyed, somebody's code has dropped it: Python in a weak reference's callback, an
    extension that asked whether an attribute is there."""
    if not (_obeyed or sys.is_finalizing()):
        _again(number)


def _again(number: int) -> None:
    _thread.start_new_thread(_once_more, (number,))  # threading's own start takes locks, which may be held here


def _once_more(number: int) -> None:
    time.sleep(AGAIN)
    if not _obeyed:
        signal.pthread_kill(threading.main_thread().ident or 0, number)
