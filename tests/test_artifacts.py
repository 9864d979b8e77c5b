"""What a flow run shows in the UI while its stages run, on a real server."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import request
from prefect.settings import PREFECT_API_URL
from usage import wait

from dpo_data.config import Recipe
from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.errors import OutOfDisk
from dpo_data.rundir import RunDir
from flows import artifacts
from flows.sample_and_train import sample_and_train

pytestmark = pytest.mark.usefixtures("on_prefect")

COUNT = 24


def of_last_run() -> dict[str, Any]:
    """The artifacts of the flow run that began last, by key; of several with a key, one a stage, the one made last."""
    (run,) = _ask("/flow_runs/filter", sort="START_TIME_DESC", limit=1)
    made = _ask("/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, sort="UPDATED_DESC")
    return {artifact["key"]: artifact for artifact in reversed(made)}


def _ask(path: str, **body: Any) -> Any:
    return request("POST", PREFECT_API_URL.value() + path, json=body).raise_for_status().json()


def sampled() -> dict[str, str]:
    """The table's line of the stage sample."""
    found = of_last_run().get("stages")
    return next((row for row in json.loads(found["data"]) if row["stage"] == "sample"), {}) if found else {}


class Watched(Echo):
    """An echo engine that, in the middle of its work, looks at what the UI shows until that has changed."""

    fails: bool = False

    def build(self) -> EchoEngine:
        return WatchedEngine(self.fails)


class WatchedEngine(EchoEngine):
    seen: list[tuple[float, dict[str, str]]]  # the progress and the table's line, as the UI shows them; set by the test

    def __init__(self, fails: bool):
        super().__init__()
        self.fails = fails

    def complete(self, requests: Any, sampling: Any) -> Iterator[Any]:
        for at, completed in enumerate(super().complete(requests, sampling)):
            if at in (8, 16):
                share = 100 * at / COUNT
                wait(partial(_shows, share, at), 60)
                WatchedEngine.seen.append((share, sampled()))
                if at == 16 and self.fails:
                    raise OutOfDisk("The disk is full", "Free some.")
            yield completed


def _shows(share: float, rows: int) -> bool:
    return of_last_run().get("sample", {}).get("data") == share and sampled().get("rows") == str(rows)


@pytest.fixture
def watched(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Recipe]:
    """A recipe with that engine, of which the UI and the run directory hear often."""
    monkeypatch.setattr(artifacts, "EVERY", 0.3)
    monkeypatch.setattr("dpo_data.progress.EVERY", 0.1)
    monkeypatch.setattr(WatchedEngine, "seen", [], raising=False)
    made = recipe(count=COUNT)

    def make(fails: bool) -> Recipe:
        return made.model_copy(update={"sample": made.sample.model_copy(update={"engine": Watched(fails=fails)})})

    return make


def test_a_stages_artifacts_change_while_it_runs(watched: Callable[[bool], Recipe], tmp_path: Path) -> None:
    sample_and_train(watched(False), str(tmp_path / "run"))

    (first, one), (second, other) = WatchedEngine.seen
    assert (round(first), round(second)) == (33, 67)
    assert (one["state"], one["shards"], one["done"]) == ("running", "1/3", "33 %")
    assert (other["state"], other["shards"], other["done"]) == ("running", "2/3", "66 %")
    assert one["speed"].endswith("tok/s") and one["time"].startswith("~") and "last progress" in one["remark"]
    assert (sampled()["state"], sampled()["rows"], sampled()["done"]) == ("complete", "24", "100 %")


def test_a_stage_that_fails_says_why_in_the_table(watched: Callable[[bool], Recipe], tmp_path: Path) -> None:
    with pytest.raises(OutOfDisk):
        sample_and_train(watched(True), str(tmp_path / "run"))

    assert (sampled()["state"], sampled()["remark"]) == ("failed", "The disk is full. Free some.")
    assert "report" not in of_last_run()


def test_a_server_that_does_not_answer_keeps_no_stage_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []
    over = threading.Event()

    def stuck(*_: Any) -> None:
        over.wait()
        raise httpx.ConnectError("no server")

    monkeypatch.setattr(artifacts, "PATIENCE", 0.1)
    for asks in ("create_progress_artifact", "_table_of_this_run"):
        monkeypatch.setattr(artifacts, asks, stuck)
    with artifacts.shown(RunDir(tmp_path), lambda *told: heard.append(told)) as progress:
        progress("sample", 1, 2)
    (sender,) = (thread for thread in threading.enumerate() if thread.name == "artifacts")
    assert heard == [("sample", 1, 2)], "the terminal hears all"
    over.set()
    sender.join()  # while the server is still this one


def test_a_server_that_is_away_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    again = threading.Event()

    def away(*told: Any) -> None:
        asked.append(told)
        if len(asked) > 1:
            again.set()
        raise httpx.ConnectError("no server")

    monkeypatch.setattr(artifacts, "EVERY", 0.01)
    monkeypatch.setattr(artifacts, "create_progress_artifact", away)
    monkeypatch.setattr(artifacts, "_table_of_this_run", away)
    with artifacts.shown(RunDir(tmp_path), lambda *_: None) as progress:
        progress("evaluate base", 1, 2)
        assert again.wait(60)
    assert (50.0, "evaluate-base", "1 of 2") in asked
