"""What `dpo-data gc` removes of old runs, what it never does, and that it shows its rule before it acts."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rounds import going_on, trained

from dpo_data import gc, pipeline
from dpo_data.cli import main
from dpo_data.config import dump, parse
from dpo_data.errors import InputError
from dpo_data.gc import Rule, rule_of
from dpo_data.lock import held
from dpo_data.rounds import rounds
from dpo_data.rundir import RunDir

DAY = 86_400
ALL = Rule(keep=0, unpublished=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A real run's directory, and its recipe as a table."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Name {at} rivers"}) + "\n" for at in range(8)))
    table = {
        "name": "test",
        "prompts": {"path": str(folder / "prompts.jsonl")},
        "sample": {"n": 4, "max_tokens": 8, "engine": {"type": "echo"}},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }
    pipeline.run(parse(table), RunDir(folder / "run"))
    return folder / "run", table


@pytest.fixture
def runs(made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes run directories in `runs`, copies of a real one, as many seconds old as told; keywords change the recipe."""
    monkeypatch.chdir(tmp_path)

    def make(folder: str, age: float = 0, **tables: Any) -> Path:
        path = tmp_path / "runs" / folder
        shutil.copytree(made[0], path)
        RunDir(path).write("recipe.toml", dump(parse({**made[1], **tables})))
        for file in [*path.rglob("*"), path]:
            os.utime(file, (time.time() - age,) * 2)
        return path

    return make


def stays(folder: Path, rule: Rule) -> dict[str, str | None]:
    return {one.path.name: one.stays for one in gc.look(folder, rule)}


def test_it_shows_what_would_go_with_size_and_why_and_goes_only_when_told(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, older, new = runs("old", 40 * DAY), runs("older", 50 * DAY), runs("new")
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    rule = rule_of(keep=None, older_than="30d", unpublished=True)

    gc.gc(tmp_path / "runs", rule, act=False)
    said = capsys.readouterr().out
    assert "beyond the newest 1 of each recipe's name, older than 30 days, published or not" in said
    assert f"{old}: written 40 days ago" in said and f"{older}: written 50 days ago" in said
    assert f"{new}: among the newest 1 of 'test'" in said and "notes.txt: no run directory" in said
    assert "2 of 4 to remove, 0." in said and " MiB" in said and "Nothing is removed without --yes" in said
    assert old.is_dir() and older.is_dir()

    gc.gc(tmp_path / "runs", rule, act=True)
    assert f"removed {old}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["new", "notes.txt"]


def test_the_newest_of_each_name_stay_as_many_as_told(runs: Callable[..., Path], tmp_path: Path) -> None:
    for at in range(4):
        runs(f"a{at}", at * DAY)
    runs("b", 9 * DAY, name="other")
    found = stays(tmp_path / "runs", Rule(keep=2, unpublished=True))
    assert [name for name, why in found.items() if why is None] == ["a2", "a3"]
    assert found["b"] == "among the newest 2 of 'other'"


def test_a_run_under_way_stays_even_when_it_begins_after_the_look(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("run", 40 * DAY)
    with held(run):
        assert f"in use by process {os.getpid()} of " in str(stays(tmp_path / "runs", ALL)["run"])
    found = gc.look(tmp_path / "runs", ALL)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom dpo_data.lock import held\n"
        "with held(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        [left] = gc.remove(found)
        process.kill()
    assert "is in use by process" in str(left.stays) and RunDir(run).stage("pair").manifest
    assert [one.stays for one in gc.remove(found)] == [None] and not run.exists()


def test_what_a_staying_run_stands_on_stays_wherever_its_paths_begin(runs: Callable[..., Path], tmp_path: Path) -> None:
    runs("base", 90 * DAY)
    runs("second", 80 * DAY, name="b", audit={"labels": "runs/base/labels.parquet"})
    runs("third", 70 * DAY, name="c", audit={"labels": str(tmp_path / "runs" / "second" / "labels.parquet")})
    runs("free", 60 * DAY)
    rule = Rule(keep=0, older_than=75 * DAY, unpublished=True)
    found = stays(tmp_path / "runs", rule)
    assert found == {
        "third": "written 70 days ago",
        "second": f"{tmp_path / 'runs' / 'third'} stands on it",
        "base": f"{tmp_path / 'runs' / 'second'} stands on it",
        "free": "written 60 days ago",
    }
    assert set(stays(tmp_path / "runs", ALL).values()) == {None}, "where none of them stays, none is held"


def test_a_path_may_begin_at_home_and_what_is_no_path_holds_nothing(
    runs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    runs("base", 90 * DAY)
    runs("newer", 0, name="b", audit={"labels": "~/runs/base/labels.parquet"})
    odd = ["runs/free\0/x", "~nobody-of-this-name/x", f"runs/{'x' * 5_000}/x"]
    runs("odd", 0, name="c", sample={"n": 4, "engine": {"type": "echo"}, "params": {"stop": odd}})
    runs("free", 60 * DAY)
    found = stays(tmp_path / "runs", Rule(keep=0, older_than=DAY, unpublished=True))
    assert (found["base"], found["free"]) == (f"{tmp_path / 'runs' / 'newer'} stands on it", None)


def test_the_run_from_which_the_newest_went_on_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("free", "first", "second"):
        [(made, folder)] = rounds(going_on(), RunDir(f"runs/{name}"))
        trained(folder, made, closed=name == "free")
    monkeypatch.chdir("/")
    found = stays(tmp_path / "runs", Rule(keep=1, unpublished=True))
    assert found == {
        "second": "among the newest 1 of 't'",
        "first": f"{tmp_path / 'runs' / 'second'} stands on it",
        "free": None,
    }


def test_what_is_not_published_or_awaits_people_or_cannot_be_read_stays(runs: Callable[..., Path], tmp_path: Path) -> None:
    runs("unpublished", 90 * DAY)
    people = runs("people", 90 * DAY, rank={"judge": {"type": "argilla", "dataset": "d"}})
    (people / "2-rank" / "manifest.json").unlink()
    broken = runs("broken", 90 * DAY)
    (broken / "recipe.toml").write_text("name = ")
    (tmp_path / "runs" / "link").symlink_to(broken)
    (tmp_path / "runs" / "empty").mkdir()
    found = stays(tmp_path / "runs", Rule(keep=0))
    assert found["unpublished"] == "not published (--unpublished lets it go)"
    assert stays(tmp_path / "runs", ALL)["unpublished"] is None
    for name, why in (
        ("people", "people may still rank it"),
        ("broken", "its recipe cannot be read: "),
        ("link", "no run directory"),
    ):
        assert str(stays(tmp_path / "runs", ALL)[name]).startswith(why)
    assert stays(tmp_path / "runs", ALL)["empty"] == "no run directory"


def test_a_run_with_rounds_is_a_run(runs: Callable[..., Path], tmp_path: Path) -> None:
    top = tmp_path / "runs" / "rounds"
    for number in (1, 2):
        made = runs("one", 40 * DAY)
        top.mkdir(exist_ok=True)
        made.rename(top / f"round-{number}")
    assert stays(tmp_path / "runs", ALL) == {"rounds": None}
    with held(top / "round-2"):
        assert "in use by" in str(stays(tmp_path / "runs", ALL)["rounds"])


def test_a_removal_that_was_killed_leaves_no_half_run_and_is_finished_by_the_next(
    runs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("run", 40 * DAY)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gc.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            gc.gc(tmp_path / "runs", ALL, act=True)
    assert not run.exists() and stays(tmp_path / "runs", ALL) == {}
    gc.gc(tmp_path / "runs", ALL, act=False)
    assert "its removal was stopped half-way" in capsys.readouterr().out
    gc.gc(tmp_path / "runs", ALL, act=True)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("keep", "older_than", "says"),
    [
        (None, None, "No rule says which runs are old"),
        (-1, None, "No rule says which runs are old"),
        (None, "30", "'30' is no age"),
        (None, "-3d", "'-3d' is no age"),
        (None, "3 days", "'3 days' is no age"),
    ],
)
def test_a_rule_that_is_none_is_refused(keep: int | None, older_than: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rule_of(keep, older_than, False)


@given(st.integers(0, 999), st.sampled_from(sorted(gc.UNITS)))
def test_an_age_is_a_number_and_a_unit(count: int, unit: str) -> None:
    assert rule_of(None, f"{count}{unit}", False).older_than == count * {"h": 1, "d": 24, "w": 168}[unit] * 3600


def test_a_folder_that_is_none_or_a_run_itself_is_refused(runs: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No folder of run directories"):
        gc.look(tmp_path / "none", ALL)
    with pytest.raises(InputError, match="is a run directory itself"):
        gc.look(runs("run"), ALL)


def test_the_command_does_both_and_hands_over_to_the_one_that_knows_prefect(
    runs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs("run", 40 * DAY)
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append(arguments))
    assert main(["gc", "runs", "--keep", "0", "--unpublished", "--yes"]) == 0
    assert "removed runs/run" in capsys.readouterr().out and not (tmp_path / "runs" / "run").exists()
    assert main(["gc"]) == 0 and [Path(one[1]).name for one in called] == ["gc.py", "gc.py"]
    assert [one[2:] for one in called] == [["--yes"], []]
    assert main(["gc", "runs"]) == 2, "no rule"
