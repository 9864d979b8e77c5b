"""A run's status as a person reads it: once, or anew and anew until the run ends."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from dpo_data import stop
from dpo_data.nvidia import Gpu
from dpo_data.progress import every
from dpo_data.rundir import RunDir
from dpo_data.status import RunStatus, StageStatus, status

WIDTH = 80
COLUMNS = "  {:<8} {:<9} {:>11} {:>10} {:>5} {:>6} {:>12} {:>9}"
INDENT = " " * 11

Units = tuple[tuple[int, float, str], ...]
"""How much one of a unit is, and how many of it are told in it at most."""

TIMES: Units = ((1, 100, "s"), (60, 100, "min"), (3600, 48, "h"), (86_400, float("inf"), "d"))
SPEEDS: Units = ((1, 9_999.5, ""), (1000, 999.5, "k"), (1_000_000, float("inf"), "M"))  # beyond, rounding would add a digit


def text(found: RunStatus) -> str:
    """A line a stage, at most 80 columns wide but for names and paths. Times that are guessed begin with `~`. What a server has
    said cannot move the cursor."""
    return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in _lines(found))


def watch(run: RunDir, as_json: bool = False) -> int:
    """Show the status until nobody is at the run. Returns the exit code: that of the run, as its directory tells, or 130 after
    Ctrl-C. A terminal is drawn anew; elsewhere only the last one is printed, or, as JSON, each on a line."""
    drawn, terminal = 0, sys.stdout.isatty()
    try:
        while True:
            found = status(RunDir(str(run)))  # a new one each time: one at a URL asks the store but once
            if as_json:
                print(json.dumps(asdict(found)), flush=True)
            elif terminal:
                drawn = _draw(text(found), drawn)
            elif not found.holder:
                print(text(found))
            if not found.holder:
                return found.exit_code
            time.sleep(every(run))
    except KeyboardInterrupt as stopped:
        return 128 + stop.obeyed(stopped)


def _draw(text: str, over: int) -> int:
    """Print a text in the place of the last `over` lines, cut to what the terminal can hold. Returns how many there are."""
    columns, height = shutil.get_terminal_size()
    lines = [line[: columns - 1] for line in text.splitlines()][: height - 1]
    back = f"\x1b[{over}F\x1b[J" if over else ""
    print(back + "\n".join(lines), flush=True)
    return len(lines)


def _lines(found: RunStatus) -> Iterator[str]:
    yield found.run
    if found.holder:
        yield from _wrapped(f"held by {found.holder}", "  ")
    if found.killed:
        yield from _wrapped(f"killed: {found.killed}", "  ")
    for one in found.rounds or [found]:
        if one is not found:
            yield from ("", one.run)
        yield COLUMNS.format(*cells(StageStatus("", "")))
        for stage in one.stages:
            yield from _stage(stage)
    if found.no_further:
        yield from ("", *_wrapped(f"ended: {found.no_further}", "  "))
    yield from map(_gpu, found.gpus)


def cells(stage: StageStatus) -> dict[str, str]:
    """A stage's line, by the names of its columns."""
    done = 100 if stage.state == "complete" else 100 * (stage.rows or 0) // stage.rows_total if stage.rows_total else None
    left = f"~{duration(stage.left)}" if stage.left is not None else ""
    return {
        "stage": stage.name,
        "state": stage.state,
        "shards": _shards(stage),
        "rows": f"{stage.rows:,}" if stage.rows is not None else "",
        "done": f"{done} %" if done is not None else "",
        "failed": f"{stage.failed:,}" if stage.failed is not None else "",
        "speed": _speed(stage),
        "time": duration(stage.seconds) if stage.seconds is not None else left,
    }


def remark(stage: StageStatus) -> str:
    """What there is to say of a stage besides: its error; or, while it runs, its step and how long ago the last row came, by
    which one that hangs is known."""
    if stage.error or stage.state != "running" or not stage.last:
        return stage.error or ""
    ago = (datetime.now(UTC) - datetime.fromisoformat(stage.last)).total_seconds()
    what = "last progress" if stage.rows else "nothing yet, begun"
    return f"{f'{stage.step}: ' if stage.step else ''}{what} {duration(max(0.0, ago))} ago"


def _stage(stage: StageStatus) -> Iterator[str]:
    yield COLUMNS.format(*cells(stage).values()).rstrip()
    for part in stage.parts:
        total = f"/{stage.shards_total:,}" if stage.shards_total else ""
        yield f"{INDENT}{f'{part.shards:,}{total}':>21}  of {part.model}"[:WIDTH]
    yield from _wrapped(remark(stage), INDENT)


def _shards(stage: StageStatus) -> str:
    if stage.shards is None:
        return ""
    return f"{stage.shards:,}" + (f"/{stage.shards_total:,}" if stage.shards_total else "")


def _speed(stage: StageStatus) -> str:
    if stage.tokens_per_second:
        return _each_second(stage.tokens_per_second, "tok")
    unit = "steps" if stage.name == "train" else "rows"
    if stage.rows_per_second and stage.rows_per_second < 0.1:
        return f"{60 * stage.rows_per_second:.1f} {unit}/min"
    return _each_second(stage.rows_per_second, unit) if stage.rows_per_second else ""


def _each_second(value: float, unit: str) -> str:
    count, letter = _in_units(value, SPEEDS)
    return f"{count:,.{int(count < 9.95)}f}{letter} {unit}/s"


def _gpu(gpu: Gpu) -> str:
    used, total = (f"{mib / 1024:.1f}" if mib is not None else "?" for mib in (gpu.used, gpu.total))
    busy = f", {gpu.busy} % busy" if gpu.busy is not None else ""
    return f"  GPU {gpu.index}: {used} of {total} GiB{busy}, {gpu.name}"


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def duration(seconds: float) -> str:
    """A time as a person says it: `0.4 s`, `12 min`, `2.1 h`."""
    count, unit = _in_units(seconds, TIMES)
    return f"{count:.{int(count < 10 and unit != 'min')}f} {unit}"


def _in_units(value: float, units: Units) -> tuple[float, str]:
    return next((value / size, unit) for size, most, unit in units if value / size < most)
