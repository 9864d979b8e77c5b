"""The flow curate: people are asked, waited for and collected from; when a run is ranked, an event says so, once.

Here a file stands for the people. With a real Argilla, and a real worker that goes on to training: test_whole_curation.py.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awaited
import httpx
import pytest
from awaited import URL, answer, asking
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from dpo_data import lock
from dpo_data.config import Recipe, dump
from dpo_data.rank import rank
from dpo_data.rundir import FOLDERS, RunDir
from dpo_data.share import SHIPPED
from flows import curate
from flows.curate import collect, push
from flows.sample_and_train import sample_and_train

pytestmark = pytest.mark.usefixtures("on_prefect")


@pytest.fixture
def made(recipe: Callable[..., Recipe], tmp_path: Path) -> Recipe:
    """40 prompts in five shards, which people rank at `tmp_path / "desk"`."""
    return asking(recipe(), tmp_path / "desk")


def end(flow: Any, *given: Any) -> State[Any]:
    """The last state of a flow run."""
    state: State[Any] = flow(*given, return_state=True)
    return state


def ask(path: str, **body: Any) -> Any:
    return httpx.post(PREFECT_API_URL.value() + path, json=body, timeout=60).raise_for_status().json()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events that the server has taken, as they went over the wire."""
    taken: list[dict[str, Any]] = []

    def client(**options: Any) -> Any:
        made = get_client(**options)

        def note(answer: httpx.Response) -> None:
            if answer.request.url.path.endswith("/events") and answer.is_success:
                taken.extend(json.loads(answer.request.content))

        made._client.event_hooks["response"].append(note)
        return made

    monkeypatch.setattr(curate, "get_client", client)
    return taken


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """A folder's content, with the times of its files."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_who_waits_for_people_has_not_failed(made: Recipe, tmp_path: Path, sent: list[dict[str, Any]]) -> None:
    run = tmp_path / "Run_1"

    state = end(push, made, str(run))

    assert state.type == "COMPLETED"
    assert state.message == f"{run}: 40 prompts await annotation at {URL}. Run again to collect."
    [flow_run] = ask("/flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert flow_run["state"]["message"] == state.message
    of_run = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    assert {task["state"]["type"] for task in ask("/task_runs/filter", **of_run)} == {"COMPLETED"}
    [artifact] = [one for one in ask("/artifacts/filter", **of_run) if one["type"] == "markdown"]
    assert artifact["key"] == "awaited-run-1" and f"<{URL}>" in artifact["data"]
    assert RunDir(run).stage("sample").manifest and not RunDir(run).stage("rank").manifest
    assert not sent


def test_what_people_have_ranked_is_kept_until_the_others_have(
    made: Recipe, tmp_path: Path, sent: list[dict[str, Any]]
) -> None:
    run = RunDir(tmp_path / "run")
    end(push, made, str(run.path))

    answer(tmp_path / "desk", run, 0.5)
    assert "20 prompts await" in str(end(collect, made, str(run.path)).message)
    assert len(run.stage("rank").shards()) == 2, "of eight prompts each"

    answer(tmp_path / "desk", run)
    state = end(collect, made, str(run.path))
    assert (state.type, state.message) == ("COMPLETED", f"{run.path}: ranked")
    assert run.stage("rank").require()["prompts"] == 40
    [event] = sent
    assert event["payload"] == {"recipe": str(run.path / "recipe.toml"), "run": str(run.path)}

    before = files(run.path)
    assert end(collect, made, str(run.path)).message == f"No run at {run.path} awaits anything"
    assert files(run.path) == before and len(sent) == 1


def test_before_any_push_there_is_nothing_to_collect(made: Recipe, tmp_path: Path) -> None:
    state = end(collect, made, str(tmp_path / "{name}-{date}"))
    assert (state.type, state.message) == ("COMPLETED", f"No run at {tmp_path}/{{name}}-{{date}} awaits anything")
    assert not list(tmp_path.glob("test-*"))


def test_every_push_of_a_name_is_collected_and_no_other(made: Recipe, tmp_path: Path) -> None:
    old, new, other, half = (
        tmp_path / name for name in ("test-2026-01-01T0200", "test-2026-01-02T0200", "test-2", "test-2026-01-03T0200")
    )
    for run in (old, new, other):
        end(push, made, str(run))
    half.mkdir()  # a push that is still sampling

    state = end(collect, made, str(tmp_path / "{name}-{date}"))

    assert [line.split(": ")[0] for line in str(state.message).splitlines()] == [str(old), str(new)]
    assert not list(half.iterdir())


def test_one_run_that_cannot_be_ranked_keeps_no_other_from_it(made: Recipe, tmp_path: Path, sent: list[dict[str, Any]]) -> None:
    stale, good = tmp_path / "test-2026-01-01T0200", RunDir(tmp_path / "test-2026-01-02T0200")
    end(push, made.model_copy(update={"seed": 1}), str(stale))
    end(push, made, str(good.path))
    answer(tmp_path / "desk", RunDir(stale), 0.5)
    end(collect, made.model_copy(update={"seed": 1}), str(stale))
    answer(tmp_path / "desk", good)

    state = end(collect, made, str(tmp_path / "{name}-{date}"))

    assert state.type == "FAILED"
    first, second = str(state.message).splitlines()
    assert first.startswith(f"{stale}: {stale}/2-rank was made with another recipe: seed was 1, is 0.")
    assert second == f"{good.path}: ranked"
    assert [event["payload"]["run"] for event in sent] == [str(good.path)]


def test_a_server_that_is_away_fails_one_collect_and_not_the_next(made: Recipe, tmp_path: Path) -> None:
    office = tmp_path / "office"
    made, run = asking(made, office / "desk"), RunDir(tmp_path / "run")
    office.mkdir()
    end(push, made, str(run.path))
    office.rename(tmp_path / "away")

    state = end(collect, made, str(run.path))
    assert state.type == "FAILED"
    assert state.message == f"{run.path}: Nothing answers at {URL}. Start it with `dpo-data argilla up`."

    (tmp_path / "away").rename(office)
    answer(office / "desk", run)
    assert end(collect, made, str(run.path)).message == f"{run.path}: ranked"


def test_what_a_hand_has_ranked_is_announced_and_what_it_has_paired_is_not(
    made: Recipe, tmp_path: Path, sent: list[dict[str, Any]]
) -> None:
    ranked, paired = RunDir(tmp_path / "ranked"), RunDir(tmp_path / "paired")
    for run in (ranked, paired):
        end(push, made, str(run.path))
    answer(tmp_path / "desk", ranked)
    for run in (ranked, paired):
        rank(made, run, lambda *told: None)
    paired.stage("pair").open({}, {})

    for run in (ranked, paired):
        end(collect, made.model_copy(update={"seed": 1}), str(run.path))  # ranked it is, by whatever recipe

    assert [event["payload"]["run"] for event in sent] == [str(ranked.path)]


def test_two_flow_runs_never_rank_one_run(made: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    end(push, made, str(run))
    with (run / lock.FILE).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert end(collect, made, str(run)).message == f"{run}: Another flow run is at it."
    assert "await" in str(end(collect, made, str(run)).message)


def test_a_prefect_that_does_not_take_the_event_is_told_again(
    made: Recipe, tmp_path: Path, sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    end(push, made, str(run.path))
    answer(tmp_path / "desk", run)
    with monkeypatch.context() as patch:
        patch.setattr(curate.Event, "model_dump", lambda *given, **more: "no event")
        assert end(collect, made, str(run.path)).type == "FAILED"
    assert not (run.path / curate.ANNOUNCED).exists() and not sent

    assert end(collect, made, str(run.path)).message == f"{run.path}: ranked"
    assert len(sent) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_collect_goes_on_when_it_is_called_again(
    made: Recipe, recipe: Callable[..., Recipe], tmp_path: Path, sent: list[dict[str, Any]], number: int
) -> None:
    run, untouched = RunDir(tmp_path / "run"), RunDir(tmp_path / "untouched")
    for folder in (run, untouched):
        end(push, made, str(folder.path))
    answer(tmp_path / "desk", run)
    process = _collect(recipe(), run, tmp_path / "desk", delay=0.1)
    for _ in range(600):
        assert process.poll() is None, process.communicate()[1]
        if run.stage("rank").shards():
            break
        time.sleep(0.1)

    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not run.stage("rank").manifest

    for folder in (run, untouched):
        assert end(collect, made, str(folder.path)).message == f"{folder.path}: ranked"
    assert [path.read_bytes() for path in run.stage("rank").shards()] == [
        path.read_bytes() for path in untouched.stage("rank").shards()
    ]
    assert [event["resource"]["prefect.resource.name"] for event in sent] == ["run", "untouched"]


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "events"), [("before", 1), ("after", 2)])
def test_killed_beside_the_event_collect_sends_it_when_it_is_called_again(
    made: Recipe, recipe: Callable[..., Recipe], tmp_path: Path, dies: str, events: int
) -> None:
    """After it is sent and before that is written down, it is sent a second time, which does no harm."""
    run = RunDir(tmp_path / f"killed-{dies}")
    end(push, made, str(run.path))
    answer(tmp_path / "desk", run)
    process = _collect(recipe(), run, tmp_path / "desk", 0, dies)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert run.stage("rank").manifest and not (run.path / curate.ANNOUNCED).exists()

    assert end(collect, made, str(run.path)).message == f"{run.path}: ranked"
    assert (run.path / curate.ANNOUNCED).exists()
    wanted = {"event": {"name": [curate.EVENT]}, "resource": {"id": [f"dpo-data.run.{run.path.name}"]}}
    for _ in range(100):
        if ask("/events/filter", filter=wanted)["total"] >= events:
            break
        time.sleep(0.1)
    assert ask("/events/filter", filter=wanted)["total"] == events

    sample_and_train(made, str(run.path))  # as the first event has it
    before = {name: files(run.stage(name).path) for name in FOLDERS}
    sample_and_train(made, str(run.path))  # as the second
    assert before["pair"] and {name: files(run.stage(name).path) for name in FOLDERS} == before


def _collect(recipe: Recipe, run: RunDir, desk: Path, delay: float, *dies: str) -> "subprocess.Popen[str]":
    """A collect in a process of its own."""
    file = run.path.with_suffix(".toml")
    file.write_text(dump(recipe))
    command = [sys.executable, awaited.__file__, str(file), str(run.path), str(desk), str(delay), *dies]
    env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(SHIPPED)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
