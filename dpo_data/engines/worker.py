"""The worker's side of several workers: one engine in a process of its own, and the thread that feeds it."""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dpo_data.errors import DpoDataError, EngineError
from dpo_data.seams import Completed, Engine, Request, Sampling

WAIT = 1.0
"""Seconds that a worker waits for an answer to tell, before it tells that there is none."""
LINGER = 0.02
"""Seconds that it waits for more once there is one, so that answers travel together."""


@dataclass(slots=True)
class Told:
    """What a worker says: of itself when it has started, and then what is answered. `backlog`: how many requests its engine has
    not taken yet. `log`: what it has logged since, as (logger, level, text). `error`: what ended the engine. `lost`: this is
    said of it, since its process has ended."""

    answers: list[Completed] = field(default_factory=list)
    backlog: int = 0
    model: str = ""
    policy: dict[str, Any] | None = None
    log: list[tuple[str, int, str]] = field(default_factory=list)
    error: DpoDataError | None = None
    lost: bool = False


class Worker:
    """Holds the engine of an engine's table. Its methods are called one after the other."""

    def __init__(self, settings: Any, folder: str):
        self._settings, self._folder = settings, folder
        self._engine: Engine | None = None
        self._feed: Feed | None = None
        self._log = Log()

    def start(self) -> Told:
        """Build the engine."""
        logging.getLogger().addHandler(self._log)
        logging.getLogger().setLevel(logging.INFO)
        with suppress(OSError):
            os.chdir(self._folder)  # so that a recipe's paths mean the same here
        try:
            self._engine = self._settings.build()
        except Exception as error:
            return Told(log=self._log.taken(), error=as_ours(error))
        return Told(model=self._engine.model, policy=getattr(self._engine, "policy", None), log=self._log.taken())

    def exchange(self, call: int, sampling: Sampling, requests: list[Request], low: int) -> Told:
        """Take requests, and give the answers that are there. Waits for one, or until no more than `low` requests are in the
        backlog: then there are more to be had. -1: there are none now. Requests of another `call` than the last one have
        sampling parameters of their own; what was left of the last one is not begun any more."""
        assert self._engine
        if self._feed is None or self._feed.call != call:
            self._feed = Feed(call, self._engine, sampling, self._feed)
        answers, backlog, error = self._feed.exchange(requests, low)
        return Told(answers, backlog, log=self._log.taken(), error=error)

    def close(self) -> None:
        """Give back what the engine holds."""
        if self._engine:
            self._engine.close()


class Feed:
    """One `complete` of an engine, in a thread; begun once the one before it has ended."""

    def __init__(self, call: int, engine: Engine, sampling: Sampling, before: "Feed | None"):
        self.call = call
        self._engine, self._sampling, self._before = engine, sampling, before
        self._changed = threading.Condition()
        self._backlog: deque[Request] = deque()
        self._answers: list[Completed] = []
        self._live = 0
        self._low = -1
        self._ended = False
        self._error: DpoDataError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def exchange(self, requests: list[Request], low: int) -> tuple[list[Completed], int, DpoDataError | None]:
        """As a Worker's, as (answers, length of the backlog, error)."""
        with self._changed:
            self._backlog.extend(requests)
            self._low = low
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answers or self._error or len(self._backlog) <= low, WAIT)
            if self._answers:
                self._changed.wait_for(lambda: self._error or not (self._live or self._backlog), LINGER)
            answers, self._answers = self._answers, []
            return answers, len(self._backlog), self._error

    def end(self) -> None:
        """Begin nothing more, and wait for what is begun."""
        with self._changed:
            self._ended = True
            self._backlog.clear()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._before:
                self._before.end()
                if self._before._error:
                    raise self._before._error
                self._before = None
            while not self._ended:
                for answer in self._engine.complete(self._requests(), self._sampling):
                    with self._changed:
                        self._live -= 1
                        self._answers.append(answer)
                        self._changed.notify_all()
                if self._live:
                    raise EngineError(f"The engine gave no answer for {self._live} requests")
        except Exception as error:
            with self._changed:
                self._error = as_ours(error)
                self._changed.notify_all()

    def _requests(self) -> Iterator[Request | None]:
        """The backlog as an engine pulls it. None where that is empty while others run and no more are on their way."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog or self._ended or (self._live and self._low < 0))
                if self._ended:
                    return
                request = self._backlog.popleft() if self._backlog else None
                if request:
                    self._live += 1
                    if len(self._backlog) <= self._low:
                        self._changed.notify_all()
            yield request


class Log(logging.Handler):
    """Keeps what is logged until it is taken: the last of it, where that is too long."""

    def __init__(self) -> None:
        super().__init__()
        self._records: deque[tuple[str, int, str]] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as (logger, level, text)."""
        self._records.append((record.name, record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[str, int, str]]:
        """What was logged since it was last taken."""
        return [self._records.popleft() for _ in range(len(self._records))]


def as_ours(error: Exception) -> DpoDataError:
    """Any exception as one of ours."""
    return error if isinstance(error, DpoDataError) else EngineError(f"{type(error).__name__}: {error}")
