"""Which run directories are old enough to go, by a rule that is shown before it acts.

A run goes where it is beyond the newest `keep` of its recipe's name and nothing was written there for `older_than` seconds. It
stays, whatever the rule says, where a run is under way in it, people may still rank it, it was not published, its recipe cannot
be read, or a run in that folder that stays stands on it, by any path in its recipe. What is no run directory is left alone.
"""

import os
import re
import shutil
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from dpo_data.config import Recipe, load
from dpo_data.errors import DpoDataError, InputError
from dpo_data.judges.members import leaves
from dpo_data.lock import held, holder
from dpo_data.rundir import FOLDERS, RunDir

UNITS = {"h": 3600, "d": 86_400, "w": 604_800}
"""Seconds of the units that an age may have."""

REMOVED = ".removed"
"""How the name of a run ends that is on its way out: it is renamed first, so that a kill leaves no half run."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`keep`: how many of each recipe's name stay, the newest. `older_than`: seconds since anything was last written; None
    where age does not matter. `unpublished`: whether a run may go that was not published."""

    keep: int = 1
    older_than: float | None = None
    unpublished: bool = False

    def __str__(self) -> str:
        age = f", older than {days(self.older_than)}" if self.older_than is not None else ""
        return f"beyond the newest {self.keep} of each recipe's name{age}, published{' or not' * self.unpublished}"


@dataclass(frozen=True, slots=True)
class Found:
    """One folder: its bytes, the time of its newest file in seconds of the epoch, and why it stays; None where it may go."""

    path: Path
    bytes: int
    written: float
    name: str | None = None
    stays: str | None = None


def gc(folder: Path, rule: Rule, act: bool) -> None:
    """Print what the rule would remove from a folder of run directories, and remove it where it is to `act`."""
    found = look(folder, rule)
    print(told(folder, found, rule))
    if not act:
        print("Nothing is removed without --yes")
        return
    for path in leftovers(folder):
        shutil.rmtree(path)
    for one in remove(found):
        print(f"removed {one.path}" if one.stays is None else f"kept    {one.path}: {one.stays}")


def rule_of(keep: int | None, older_than: str | None, unpublished: bool) -> Rule:
    """The rule that a command line gives; an age is written as `30d`, `12h` or `2w`. Raises InputError."""
    parts = re.fullmatch(r"(\d+)([hdw])", older_than) if older_than is not None else None
    if older_than is not None and not parts:
        raise InputError(f"{older_than!r} is no age", "Write hours, days or weeks, as 12h, 30d or 2w.")
    if (keep is None and parts is None) or (keep is not None and keep < 0):
        raise InputError("No rule says which runs are old", "Give --keep N, --older-than 30d, or both.")
    age = float(parts[1]) * UNITS[parts[2]] if parts else None
    return Rule(1 if keep is None else keep, age, unpublished)


def days(age: float) -> str:
    """An age in days, or in hours below two of them."""
    return f"{age / 3600:.0f} hours" if age < 2 * 86_400 else f"{age / 86_400:.0f} days"


def look(folder: Path, rule: Rule) -> list[Found]:
    """All that is in a folder of run directories, by name, each with why it stays. Raises InputError where it is none."""
    if not folder.is_dir():
        raise InputError(f"No folder of run directories at {folder}", "Name one on this machine, as runs.")
    if (folder / "recipe.toml").exists():
        raise InputError(f"{folder} is a run directory itself", f"Name the folder that holds it: {folder.parent}.")
    found = [_look(path, rule) for path in sorted(folder.iterdir()) if not path.name.endswith(REMOVED)]
    return sorted(_stood_on(_by_rule(found, rule), folder), key=lambda one: one.path)


def told(folder: Path, found: list[Found], rule: Rule) -> str:
    """What would be removed and what stays, a line each with its size and why."""
    go = [one for one in found if one.stays is None]
    lines = [f"{folder}: what goes is {rule}"]
    for one in found:
        what, age = ("stays", one.stays) if one.stays else ("remove", f"written {days(time.time() - one.written)} ago")
        lines.append(f"  {what:<6} {_size(one.bytes):>10}  {one.path}: {age}")
    lines += [f"  remove {'':>10}  {path}: its removal was stopped half-way" for path in leftovers(folder)]
    return "\n".join([*lines, f"{len(go)} of {len(found)} to remove, {_size(sum(one.bytes for one in go))}"])


def remove(found: Iterable[Found]) -> Iterator[Found]:
    """Remove what may go, and yield each when it is gone; one that somebody has begun again meanwhile is left, and says so."""
    for one in found:
        if one.stays is None:
            try:
                with ExitStack() as locks:
                    for folder in _folders(one.path):
                        locks.enter_context(held(folder))
                    gone = one.path.rename(one.path.with_name(f".{one.path.name}{REMOVED}"))
            except DpoDataError as error:
                yield replace(one, stays=str(error))
                continue
            shutil.rmtree(gone)
            yield one


def leftovers(folder: Path) -> list[Path]:
    """The run directories that were renamed, and whose removal was then killed."""
    return [path for path in sorted(folder.glob(f".*{REMOVED}")) if path.is_dir() and not path.is_symlink()]


def _look(path: Path, rule: Rule) -> Found:
    if path.is_symlink() or not _is_run(path):
        return Found(path, 0, 0.0, stays="no run directory")
    size, written = _measured(path)
    one = Found(path, size, written)
    try:
        recipe = _recipe(path)
    except DpoDataError as error:
        return replace(one, stays=f"its recipe cannot be read: {error}")
    return replace(one, name=recipe.name, stays=_why(RunDir(path), recipe, rule))


def _why(run: RunDir, recipe: Recipe, rule: Rule) -> str | None:
    """Why a run stays whatever its age."""
    owners = [owner for folder in _folders(run.path) if (owner := holder(folder))]
    if owners:
        return f"in use by {owners[0]}"
    each = run.rounds or [run]
    if any(_awaits_people(one, recipe) for one in each):
        return "people may still rank it"
    published = recipe.publish is not None and all(one.stage("publish").manifest for one in each)
    return None if published or rule.unpublished else "not published (--unpublished lets it go)"


def _awaits_people(run: RunDir, recipe: Recipe) -> bool:
    asked = any(judge.type in ("argilla", "terminal") for _, judge in leaves(recipe.rank.judge, "rank.judge"))
    return asked and any(run.stage(name).recipe and not run.stage(name).manifest for name in ("rank", "evaluate"))


def _by_rule(found: list[Found], rule: Rule) -> list[Found]:
    """The same with what the rule itself keeps: the newest of each name, and what is too young."""
    now, newer = time.time(), defaultdict[str | None, int](int)
    ruled = []
    for one in sorted(found, key=lambda one: one.written, reverse=True):
        if one.name is not None:
            newer[one.name] += 1
            if one.stays is None and newer[one.name] <= rule.keep:
                one = replace(one, stays=f"among the newest {rule.keep} of {one.name!r}")
            if one.stays is None and rule.older_than is not None and now - one.written < rule.older_than:
                one = replace(one, stays=f"written {days(now - one.written)} ago")
        ruled.append(one)
    return ruled


def _stood_on(found: list[Found], folder: Path) -> list[Found]:
    """The same, where those stay too on which one that stays stands; and so on, until nothing changes."""
    needs = {one.path: set(_needed(one, folder)) for one in found}
    while True:
        needed = {name: one.path for one in found if one.stays for name in needs[one.path]}
        more = [one for one in found if one.stays is None and one.path.name in needed]
        if not more:
            return found
        rest = [one for one in found if one not in more]
        found = [*rest, *(replace(one, stays=f"{needed[one.path.name]} stands on it") for one in more)]


def _needed(one: Found, folder: Path) -> Iterator[str]:
    """The names of the run directories of a folder on which a run stands: those into which a path in its recipes leads. The
    rounds that it comes after are such paths."""
    home = folder.resolve()
    for text in chain.from_iterable(map(_texts, one.path.rglob("recipe.toml"))):
        for base in (Path.cwd(), *home.parents):  # a path in a recipe begins where its run was started
            with suppress(ValueError, RuntimeError, OSError):  # what cannot be a path leads nowhere
                place = (base / Path(text).expanduser()).resolve()
                if place.is_relative_to(home) and place != home:
                    yield place.relative_to(home).parts[0]


def _texts(file: Path) -> Iterator[str]:
    """All texts of a TOML file, at any depth, that may be paths; none where it is no TOML."""
    try:
        inside: list[Any] = [tomllib.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return
    while inside:
        value = inside.pop()
        if isinstance(value, dict | list):
            inside += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and "/" in value and "\n" not in value:
            yield value


def _folders(path: Path) -> list[Path]:
    """A run directory and those of its rounds."""
    return [path, *(one.path for one in RunDir(path).rounds)]


def _is_run(path: Path) -> bool:
    """Whether a folder is a run directory: it has a recipe and a stage that has begun, or rounds."""
    run = RunDir(path)
    begun = any(run.stage(name).path.is_dir() for name in FOLDERS)
    return bool(run.rounds) or (begun and (path / "recipe.toml").is_file())


def _recipe(path: Path) -> Recipe:
    """The recipe of a run directory, or of its first round."""
    return load(next(file for folder in _folders(path) if (file := folder / "recipe.toml").is_file()))


def _measured(path: Path) -> tuple[int, float]:
    """The bytes that removing a folder would free, and the time of its newest file. A fork shares files with the run that it
    was made of: such bytes count for none of them."""
    size, newest = 0, 0.0
    for folder, _, files in os.walk(path):
        for name in files:
            told = (Path(folder) / name).lstat()
            size += told.st_size if told.st_nlink == 1 else 0
            newest = max(newest, told.st_mtime)
    return size, newest


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
