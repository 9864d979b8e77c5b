"""A judge that waits for people, with a file in the place of an Argilla: the prompts that they have ranked, an id a line."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dpo_data.config import Recipe, load
from dpo_data.errors import ArgillaError, Unfinished
from dpo_data.judges.rule import Rule
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir

URL = "http://127.0.0.1:6900/dataset/d5"


class People(Rule):
    """They prefer what is short. `desk` is the file; where its folder is gone, so is the server. `delay`: seconds an answer."""

    incidental = frozenset({"desk", "delay"})
    rule: str = "concise"
    desk: Path
    delay: float = 0.0

    def build(self, *given: Any) -> "PeopleJudge":
        return PeopleJudge(self.desk, self.delay)


class PeopleJudge:
    name = "people"

    def __init__(self, desk: Path, delay: float):
        self.desk, self.delay = desk, delay

    def rank(self, groups: Iterable[Sample]) -> Iterator[Ranking]:
        if not self.desk.parent.exists():
            raise ArgillaError(f"Nothing answers at {URL}", "Start it with `dpo-data argilla up`.")
        ranked, waits = self.desk.read_text().split() if self.desk.exists() else [], 0
        for group in groups:
            if group.prompt_id in ranked:
                time.sleep(self.delay)
                ids = [one.completion_id for one in group.completions]
                yield Ranking(group.prompt_id, self.name, ids, [-float(len(one.text)) for one in group.completions], None, "[]")
            else:
                waits += 1
        if waits:
            raise Unfinished(f"{waits} prompts await annotation at {URL}", "Run again to collect.")

    def close(self) -> None: ...


def asking(recipe: Recipe, desk: Path, delay: float = 0.0) -> Recipe:
    """The recipe with people for its judge."""
    return recipe.model_copy(update={"rank": recipe.rank.model_copy(update={"judge": People(desk=desk, delay=delay)})})


def answer(desk: Path, run: RunDir, share: float = 1.0) -> None:
    """Have people rank the first of a run's prompts."""
    ids = list(run.stage("sample").column("prompt_id"))
    with desk.open("a") as file:
        file.writelines(f"{one}\n" for one in ids[: round(share * len(ids))])


def main(file: str, run: str, desk: str, delay: str, dies: str = "") -> None:
    """Collect. `dies`: this process is killed `before` the event is sent, or `after` it and before that is written down."""
    from flows import curate

    def write(self: RunDir, name: str, content: str) -> Path:
        return die() if name == curate.ANNOUNCED else written(self, name, content)

    written = RunDir.write
    if dies == "before":
        curate.Event = die
    if dies == "after":
        RunDir.write = write
    print(curate.collect(asking(load(file), Path(desk), float(delay)), run, return_state=True).message)


def die(**given: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    main(*sys.argv[1:])
