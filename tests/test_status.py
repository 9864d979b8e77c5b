"""How far a run is, as its directory tells it: while it runs, killed, failed and complete; in a terminal and as JSON."""

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pty_child import CLI, typing
from usage import wait

from dpo_data import cli, lock, pipeline, progress
from dpo_data.config import Recipe
from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.engines.mix import Mix
from dpo_data.errors import EngineError, Unfinished
from dpo_data.progress import noted_in
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed
from dpo_data.status import Part, RunStatus, StageStatus, status
from dpo_data.watch import cells, duration, remark, text

COUNT = 40
"""Prompts of a run, in shards of eight."""


class Looking(Echo):
    """An echo engine that cannot answer every fifth prompt. After `at` answers somebody looks at its run; where it `dies`, it
    does so then."""

    at: int = 20
    dies: bool = False

    def build(self) -> "LookingEngine":
        return LookingEngine(self.at, self.dies)


class LookingEngine(EchoEngine):
    look: Callable[[int], RunStatus]  # once so many rows are noted; set by the test, as `seen` is
    seen: list[RunStatus]

    def __init__(self, at: int, dies: bool):
        super().__init__()
        self.at, self.dies = at, dies

    def complete(self, requests: Any, sampling: Any) -> Iterator[Completed]:
        for at, completed in enumerate(super().complete(requests, sampling)):
            if at == self.at:
                LookingEngine.seen.append(LookingEngine.look(at))
                if self.dies:
                    raise EngineError("The engine died", "Feed it.")
            yield Completed(completed.id, [], "too long") if at % 5 == 0 else completed


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that is noted often, and looked at by that engine."""
    run = RunDir(tmp_path / "run")

    def look(rows: int) -> RunStatus:
        return wait(lambda: (noted_in(run)["now"] or {}).get("rows") == rows and status(run), 60)

    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(LookingEngine, "look", staticmethod(look), raising=False)
    monkeypatch.setattr(LookingEngine, "seen", [], raising=False)
    return run


@pytest.fixture
def looked_at(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Makes a recipe that samples with such an engine."""
    made = recipe(count=COUNT)

    def make(engine: Any) -> Recipe:
        return made.model_copy(update={"sample": made.sample.model_copy(update={"engine": engine, "max_failed": 1.0})})

    return make


def sample(recipe: Recipe, run: RunDir, listener: Any = lambda *_: None) -> None:
    pipeline.run_stage("sample", recipe, run, listener)


def test_a_stage_that_runs(run: RunDir, looked_at: Callable[..., Recipe]) -> None:
    sample(looked_at(Looking()), run)
    (seen,) = LookingEngine.seen
    stage, *later = seen.stages
    assert seen.holder and seen.holder.pid == os.getpid()
    assert [one.state for one in (stage, *later)] == ["running", "not begun", "not begun"]
    assert (stage.shards, stage.shards_total, stage.rows, stage.rows_total, stage.failed) == (2, 5, 20, COUNT, 4)
    assert stage.rows_per_second and stage.tokens_per_second and stage.tokens_per_second > stage.rows_per_second
    assert stage.left == pytest.approx(20 / stage.rows_per_second)
    first, holder, *_, line, last, _, _ = text(seen).splitlines()
    assert first == str(run) and f"held by process {os.getpid()}" in holder
    assert line.split()[:6] == ["sample", "running", "2/5", "20", "50", "%"] and last.strip().startswith("last progress")


def test_a_complete_run_keeps_no_note_of_when(run: RunDir, looked_at: Callable[..., Recipe]) -> None:
    pipeline.run(looked_at(Looking()), run)
    found = status(run)
    assert [stage.state for stage in found.stages] == ["complete"] * 3 and found.exit_code == 0 and found.holder is None
    assert (found.stages[0].rows, found.stages[0].failed, found.stages[0].shards) == (COUNT, 8, 5)
    assert noted_in(run) == {"stages": ["sample", "rank", "pair"], "now": None}
    manifests = [run.stage(stage.name).manifest for stage in found.stages]
    assert not [file for manifest in manifests if manifest for file in manifest["files"] if progress.FILE in file["name"]]
    assert [line.split()[1] for line in text(found).splitlines()[2:]] == ["complete"] * 3


def test_what_failed_is_counted_over_all_attempts(run: RunDir, looked_at: Callable[..., Recipe]) -> None:
    with pytest.raises(EngineError):
        sample(looked_at(Looking(dies=True)), run)
    (stage, *_), code = status(run).stages, status(run).exit_code
    assert (stage.state, stage.error, stage.failed, code) == ("failed", "The engine died. Feed it.", 4, 4)
    assert "The engine died. Feed it." in text(status(run))

    sample(looked_at(Looking(at=10)), run)
    again = LookingEngine.seen[1].stages[0]
    assert (again.shards, again.rows, again.failed) == (3, 26, 4 + 2), (
        "16 rows in two shards, of which four failed, and ten new"
    )
    assert status(run).stages[0].failed == 4 + 5


def test_the_parts_of_a_mix(run: RunDir, looked_at: Callable[..., Recipe]) -> None:
    sample(looked_at(Mix.model_construct(type="mix", engines=[Echo(), Looking()])), run)
    stage = LookingEngine.seen[0].stages[0]
    assert stage.parts == [Part("echo", 5), Part("echo", 2)]
    assert (stage.rows, stage.rows_total, stage.shards_total) == (COUNT + 20, 2 * COUNT, 5)
    assert [line.split() for line in text(LookingEngine.seen[0]).splitlines() if " of echo" in line] == [
        ["5/5", "of", "echo"],
        ["2/5", "of", "echo"],
    ]


def test_a_stage_that_waits_for_somebody_is_no_failure(
    run: RunDir, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(*_: Any) -> None:
        raise Unfinished("3 of 40 prompts are ranked", "Run again to collect the others.")

    monkeypatch.setattr("dpo_data.rank.rank", waits)
    with pytest.raises(Unfinished):
        pipeline.run(recipe(), run)
    found = status(run)
    assert [stage.state for stage in found.stages] == ["complete", "waiting", "not begun"] and found.exit_code == 75


def test_rounds(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in (1, 2):
        run.round(number).write("recipe.toml", "")
        now = {**progress.Noted("sample", lambda *_: None).note(), "done": number, "total": 9}
        run.round(number).write(progress.FILE, json.dumps({"stages": ["sample", "train"], "now": now}))
    found = status(RunDir(tmp_path))
    assert [one.run for one in found.rounds] == [str(tmp_path / "round-1"), str(tmp_path / "round-2")]
    assert [[stage.state for stage in one.stages] for one in found.rounds] == [["stopped", "not begun"]] * 2
    assert found.exit_code == 1 and found.stages == []
    run.write("rounds.json", json.dumps({"stopped": "all 2 rounds are done"}))
    ended = status(RunDir(tmp_path))
    assert ended.exit_code == 0 and text(ended).endswith("  ended: all 2 rounds are done")


def test_a_run_of_which_nothing_is_noted_shows_all_stages(tmp_path: Path) -> None:
    assert [stage.state for stage in status(RunDir(tmp_path)).stages] == ["not begun"] * 6


def test_the_gpus_are_shown_while_somebody_is_at_it(
    run: RunDir, looked_at: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "0, NVIDIA H100 80GB HBM3, 570.124.06, 73000, 81559, 97"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    sample(looked_at(Looking()), run)
    assert text(LookingEngine.seen[0]).endswith("\n  GPU 0: 71.3 of 79.6 GiB, 97 % busy, NVIDIA H100 80GB HBM3")
    assert not status(run).gpus


def test_a_listener_hears_the_same_with_a_note_and_without(run: RunDir, looked_at: Callable[..., Recipe]) -> None:
    heard: list[tuple[str, int, int]] = []
    sample(looked_at(Looking()), run, lambda *told: heard.append(told))
    assert heard == [("sample", at, COUNT) for at in range(COUNT + 1)]


counts = st.none() | st.integers(0, 9_999_999)
speeds = st.none() | st.floats(0.001, 1e9)


@given(
    *(counts, counts, counts, counts, speeds, speeds, st.none() | st.floats(0, 1e8)),
    st.sampled_from(["not begun", "running", "stopped", "waiting", "failed", "complete"]),
)
@example(9_999, 9_999_999, 9_999_999, 99_999, 9_999_500.0, None, 0.0, "not begun")
@example(9_999, 9_999_999, 9_999_999, 99_999, None, 9_999_500.0, 1e8, "running")
def test_a_line_fits_in_80_columns(
    shards: int | None,
    rows: int | None,
    total: int | None,
    failed: int | None,
    speed: float | None,
    tokens: float | None,
    seconds: float | None,
    state: str,
) -> None:
    shards, rows = shards and shards % 10_000, rows if rows is None or total is None else min(rows, total)
    stage = StageStatus(
        "evaluate", state, None, shards, shards, rows, total, failed and failed % 100_000, speed, tokens, seconds, seconds
    )
    found = RunStatus("run", None, [stage])
    assert all(len(line) <= 80 for line in text(found).splitlines())
    assert list(cells(stage)) == ["stage", "state", "shards", "rows", "done", "failed", "speed", "time"]


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        *((0.05, "3.0 rows/min"), (0.1, "0.1 rows/s"), (9.94, "9.9 rows/s"), (42, "42 rows/s"), (9_999.4, "9,999 rows/s")),
        *((9_999.5, "10k rows/s"), (999_499, "999k rows/s"), (999_500, "1.0M rows/s"), (9_999_500, "10M rows/s")),
    ],
)
def test_a_speed_fits_its_column(speed: float, said: str) -> None:
    assert cells(StageStatus("rank", "running", rows_per_second=speed))["speed"] == said and len(said) <= 12


@given(st.floats(0, 1e8))
def test_a_time_is_short_and_about_right(seconds: float) -> None:
    said = duration(seconds)
    value, unit = said.split()
    size = {"s": 1, "min": 60, "h": 3600, "d": 86_400}[unit]
    assert len(said) <= 8 and abs(float(value) * size - seconds) <= 0.51 * size


def test_hours_without_a_row_are_seen() -> None:
    at = "2026-01-01T00:00:00.000+00:00"
    assert remark(StageStatus("rank", "running", rows=3, last=at)).startswith("last progress ")
    assert remark(StageStatus("evaluate", "running", "evaluate base", last=at)).startswith("evaluate base: nothing yet, begun ")
    assert remark(StageStatus("rank", "stopped", rows=3, last=at)) == ""


def test_what_a_server_said_cannot_move_the_cursor() -> None:
    stage = StageStatus("rank", "failed", error="No answer: \x1b[2J\x07gone", parts=[Part("\x1b[1mmodel", 1)])
    said = text(RunStatus("runs/x", None, [stage]))
    assert "\x1b" not in said and "No answer: ?[2J?gone" in said


@pytest.fixture
def folder(tmp_path: Path, prompts: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of eight shards to sample."""
    (tmp_path / "slow.toml").write_text(
        f'name = "slow"\n[prompts]\npath = "{prompts(COUNT)}"\n[sample]\nn = 2\nmax_tokens = 8\nshard_size = 5\n'
        '[sample.engine]\ntype = "echo"\n\n[rank.judge]\ntype = "rule"\nrule = "concise"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def started(folder: Path, delay: float) -> "Iterator[subprocess.Popen[bytes]]":
    """A run of that recipe with so many seconds a request, from when its first rows are noted until the block ends."""
    command = [*CLI, "run", "slow.toml", "--set", f"sample.engine.delay={delay}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def runs() -> bool:
        assert process.poll() is None
        owner, now = lock.holder(folder / "runs" / "slow"), noted_in(RunDir("runs/slow")).get("now") or {}
        return owner is not None and owner.pid == process.pid and now.get("rows", 0) > 0

    try:
        wait(runs, 60)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_terminal_is_drawn_anew_until_the_run_is_killed_or_complete(folder: Path) -> None:
    for kill, delay, code, state in ((True, 2.0, 1, "stopped"), (False, 0.6, 0, "complete")):
        shutil.rmtree("runs", ignore_errors=True)
        watch = [*CLI, "status", "runs/slow", "--watch"]
        with started(folder, delay) as process, typing(watch, columns=80, lines=24) as terminal:
            first = terminal.wait_for(r"sample +running +\d+/8 +\d+ +\d+ % .* tok/s +~\d.*last progress")
            terminal.wait_for(r"\x1b\[8F\x1b\[Jruns/slow\r\n")
            assert f"held by process {process.pid}" in first and max(map(len, first.splitlines())) <= 80
            if kill:
                process.kill()
            process.wait()
            told = terminal.wait_for(rf"\x1b\[\dF\x1b\[Jruns/slow\r\n(  killed[^\x1b]*)?  stage[^\r]*\r\n  sample +{state}")
            assert (f"killed: process {process.pid} of " in told) == kill
            assert terminal.ends() == code


@pytest.mark.slow
def test_without_a_terminal_the_last_one_is_printed_and_json_is_the_same(folder: Path) -> None:
    command: list[str] = [*CLI, "status", "runs/slow", "--watch"]
    with started(folder, 2.0) as process:
        watched = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
        assert lines.stdout
        first = json.loads(lines.stdout.readline())
        process.send_signal(signal.SIGINT)
        shown, said = watched.communicate(timeout=60)[0], lines.communicate(timeout=60)[0]
        process.wait(60)
    found = status(RunDir("runs/slow"))
    assert shown == text(found) + "\n" and found.stages[0].state == "stopped"
    assert first["holder"]["pid"] == process.pid and first["stages"][0]["state"] == "running"
    assert json.loads(said.splitlines()[-1]) == asdict(found)
    assert watched.returncode == lines.returncode == found.exit_code == process.returncode == 130


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "slow.toml"])
    capsys.readouterr()
    assert cli.main(["status", "runs/slow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(status(RunDir("runs/slow")))
