"""What is logged, and in which form: lines of text, or a JSON object a line for a program that reads them.

DPO_DATA_LOG_FORMAT says which, so that whoever starts a worker says it for all that the worker starts.
"""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dpo_data.errors import DpoDataError, InputError

if TYPE_CHECKING:
    from dpo_data.rundir import RunDir

FORMAT = "DPO_DATA_LOG_FORMAT"
FORMATS = ("text", "json")

LOGGERS = ("dpo_data", "vllm", "reward_model", "train", "perplexity", "ray")
"""Ours, and those of the children, which pass on what they print."""

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """A JSON object a line: time (UTC), level, logger, message, pid; run, stage and round, null outside of a stage; and of an
    exception its traceback, in one field."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name, None) for name in ("run", "stage", "round")},
            "pid": record.process,
        }
        exception = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else None)
        return json.dumps({**line, "exception": exception} if exception else line)


class LogFile(logging.FileHandler):
    """A log that a full disk ends, which it says once. The run goes on: what it writes itself may have room."""

    def handleError(self, record: logging.LogRecord) -> None:
        if self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            print(f"{self.baseFilename} cannot be written any further: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # what the disk did not take
            super().close()


def as_json() -> bool:
    return os.environ.get(FORMAT) == "json"


def to_terminal() -> None:
    """Show warnings, and what is worse, on stderr. As JSON, Python's own warnings and a bug's traceback are lines too. Raises
    InputError where the environment names a form that there is not."""
    if (asked := os.environ.get(FORMAT) or "text") not in FORMATS:
        raise InputError(f"{FORMAT} is {asked!r}", f"Set it to {' or '.join(FORMATS)}.")
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    if as_json():
        logging.captureWarnings(True)
        sys.excepthook = lambda kind, error, trace: log.critical("a bug: %s", error, exc_info=(kind, error, trace))


def say(words: str) -> None:
    """A command's last words on stderr: why it ended."""
    if as_json():
        log.error(words.strip())
    else:
        print(words, file=sys.stderr)


@contextmanager
def logged(run: "RunDir", stage: str) -> Iterator[None]:
    """Keep what dpo_data and its children log while the block runs in logs/run.log, and with what error the block ended."""
    handler = LogFile(run.logs / "run.log", encoding="utf-8")
    handler.setFormatter(_formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    number = re.fullmatch(r"round-(\d+)", run.path.name)
    where = {"run": str(run), "stage": stage, "round": int(number[1]) if number else None}

    def stamp(record: logging.LogRecord) -> bool:
        record.__dict__.update(where)
        return True

    stamped = [handler, *(one for one in logging.getLogger().handlers if isinstance(one.formatter, JsonLines))]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for one in stamped:
        one.addFilter(stamp)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        handler.handle(_ended(stage, error))  # to the file alone: whoever called tells it in the terminal
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for one in stamped:
            one.removeFilter(stamp)
        handler.close()
        run.keep(run.logs)


def _ended(stage: str, error: BaseException) -> logging.LogRecord:
    """With the traceback. What an error of ours was made from is left out, for it may quote what ours does not: a key."""
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s: ended by %s", (stage, told), None)
    record.exc_text = "".join(traceback.format_exception(error, chain=not isinstance(error, DpoDataError))).rstrip()
    return record


def _formatter(text: str) -> logging.Formatter:
    return JsonLines() if as_json() else logging.Formatter(text)
