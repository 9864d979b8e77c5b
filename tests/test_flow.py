"""The flow: on a real server, what it leaves on disk and shows there; what is tried again; what survives Ctrl-C and kill -9."""

import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployed import request
from faults_on_prefect import Prefect
from prefect.settings import PREFECT_API_URL

from dpo_data import config, pipeline
from dpo_data.child import Child, Parent
from dpo_data.config import Recipe
from dpo_data.engines.echo import Echo, EchoEngine
from dpo_data.errors import EngineError, GateClosed, RecipeError, StaleRun
from dpo_data.rundir import RunDir
from flows import sample_and_train as script
from flows.sample_and_train import sample_and_train

SCRIPT = [sys.executable, str(Path(script.__file__))]
ROOT = Path(script.__file__).parents[1]

ALONE = {"PREFECT_API_URL": ""}
"""Variables with which it has a server of its own."""

pytestmark = pytest.mark.usefixtures("on_prefect")


def ask(path: str, **body: Any) -> Any:
    return request("POST", PREFECT_API_URL.value() + path, json=body).raise_for_status().json()


def last_run() -> dict[str, Any]:
    found: dict[str, Any] = ask("/flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]
    return found


def of_run(path: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(path, flow_runs={"id": {"any_": [run["id"]]}})
    return found


def pairs(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "3-pair").glob("*.parquet")}


def with_engine(recipe: Recipe, engine: Echo) -> Recipe:
    """The recipe with a test's own engine in the place of its echo engine."""
    return recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"engine": engine})})


class Talking(Echo):
    """An echo engine that begins, as vLLM does, with a child that prints."""

    def build(self) -> EchoEngine:
        child = Child("test_flow:talk", "vllm", {"PYTHONPATH": os.pathsep.join(sys.path)})
        child.receive()
        child.close()
        return EchoEngine()


def talk(parent: Parent) -> None:
    print("100 % of the weights are loaded")
    parent.send("done")


class Failing(Echo):
    """An echo engine that dies at the given requests, counted over all attempts."""

    dies_at: tuple[int, ...] = ()

    def build(self) -> EchoEngine:
        return FailingEngine(self.dies_at)


class FailingEngine(EchoEngine):
    asked: list[str]  # of all attempts: set by the test

    def __init__(self, dies_at: tuple[int, ...]):
        super().__init__()
        self.dies_at = dies_at

    def complete(self, requests: Any, sampling: Any) -> Iterator[Any]:
        for completed in super().complete(requests, sampling):
            FailingEngine.asked.append(completed.id)
            if len(FailingEngine.asked) in self.dies_at:
                raise EngineError("The engine died")
            yield completed


def test_a_run_leaves_its_pairs_on_disk_and_shows_itself_in_the_ui(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = with_engine(recipe(), Talking())

    words = sample_and_train(made, str(tmp_path / "{name}-{date}"))

    run = last_run()
    scheduled = run["expected_start_time"][:16].replace(":", "")
    folder = tmp_path / f"test-{scheduled}"
    manifest = RunDir(folder).stage("pair").manifest
    assert run["state"]["type"] == "COMPLETED"
    assert manifest and manifest["train"] > 0
    assert str(folder / "report.html") in words and (folder / "report.html").exists()

    tasks = {task["name"].rpartition("-")[0]: task for task in of_run("/task_runs/filter", run)}
    assert set(tasks) == {"sample", "rank", "pair"}

    artifacts = {artifact["key"]: artifact for artifact in of_run("/artifacts/filter", run)}
    assert {key: artifacts[key]["type"] for key in artifacts} == {
        **dict.fromkeys(("sample", "rank", "pair"), "progress"),
        **dict.fromkeys(("stages", "funnel"), "table"),
        "report": "markdown",
    }
    assert artifacts["sample"]["data"] == 100.0
    assert [(row["stage"], row["state"]) for row in json.loads(artifacts["stages"]["data"])] == [
        (name, "complete") for name in ("sample", "rank", "pair")
    ]
    assert {"step": "to train on", "prompts": manifest["train"]} in json.loads(artifacts["funnel"]["data"])
    assert str(folder / "report.html") in artifacts["report"]["data"]

    logs = _logs(run, until="report.html")
    told = {(log["name"], log["task_run_id"]): log["message"] for log in logs}
    assert told["vllm", tasks["sample"]["id"]] == "100 % of the weights are loaded"
    assert told["dpo_data.pipeline", tasks["pair"]["id"]].startswith("pair: complete")


def _logs(run: dict[str, Any], until: str) -> list[dict[str, Any]]:
    """The run's logs, which Prefect sends every two seconds."""
    for _ in range(600):
        logs: list[dict[str, Any]] = ask("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
        if any(until in log["message"] for log in logs):
            return logs
        time.sleep(0.1)
    raise AssertionError(f"No log of the run says {until!r}: {[log['message'] for log in logs]}")


def test_a_retry_goes_on_from_the_shards_on_disk(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RETRY_DELAY", 0.1)
    monkeypatch.setattr(FailingEngine, "asked", [], raising=False)
    made = recipe(count=24)
    pipeline.run(made, RunDir(tmp_path / "untouched"))

    sample_and_train(with_engine(made, Failing(dies_at=(20,))), str(tmp_path / "retried"))

    sampled = next(task for task in of_run("/task_runs/filter", last_run()) if task["name"].startswith("sample"))
    assert (sampled["run_count"], sampled["state"]["type"]) == (2, "COMPLETED")
    again = FailingEngine.asked[20:]
    assert len(again) == 8, "two shards of eight were on disk; only the third is asked for again"
    assert not set(again) & set(FailingEngine.asked[:16])
    assert pairs(tmp_path / "retried") == pairs(tmp_path / "untouched")


def test_an_engine_that_keeps_dying_fails_the_run_with_its_one_line(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RETRY_DELAY", 0.1)
    monkeypatch.setattr(FailingEngine, "asked", [], raising=False)

    with pytest.raises(EngineError):
        sample_and_train(with_engine(recipe(), Failing(dies_at=(1, 2, 3))), str(tmp_path / "run"))

    run = last_run()
    assert [task["run_count"] for task in of_run("/task_runs/filter", run)] == [3]
    assert run["state"]["type"] == "FAILED"
    assert run["state"]["message"].endswith("The engine died")


def test_an_unknown_key_fails_the_run_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "bad"\n[sampel]\nn = 4\n')

    with pytest.raises(RecipeError):
        sample_and_train(str(path), str(tmp_path / "run"))

    run = last_run()
    assert (run["state"]["type"], run["run_count"], of_run("/task_runs/filter", run)) == ("FAILED", 1, [])
    assert "Unknown key 'sampel'" in run["state"]["message"] and "Did you mean 'sample'?" in run["state"]["message"]


def test_what_a_retry_cannot_mend_is_tried_once(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe()
    pipeline.run_stage("sample", made, RunDir(tmp_path / "run"), lambda stage, done, total: None)

    with pytest.raises(StaleRun):
        sample_and_train(made.model_copy(update={"seed": 1}), str(tmp_path / "run"))

    assert [task["run_count"] for task in of_run("/task_runs/filter", last_run())] == [1]


def test_a_closed_gate_ends_the_run_before_it_publishes(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    made = recipe(publish={"repo_id": "me/pairs"}, gates={"min_pairs": 10_000})

    with pytest.raises(GateClosed, match="min_pairs = 10000"):
        sample_and_train(made, str(tmp_path / "run"))

    tasks = {task["name"].rpartition("-")[0]: task["run_count"] for task in of_run("/task_runs/filter", last_run())}
    assert tasks == {"sample": 1, "rank": 1, "pair": 1, "publish": 1}
    assert "closed" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "6-publish").exists()


@pytest.fixture
def slow(tmp_path: Path, prompts: Callable[[int], str]) -> Path:
    """A recipe file that takes nine seconds to sample."""
    path = tmp_path / "slow.toml"
    path.write_text(
        f'name = "slow"\n[prompts]\npath = "{prompts(30)}"\n[sample]\nn = 4\nmax_tokens = 8\nshard_size = 3\n'
        '[sample.engine]\ntype = "echo"\ndelay = 0.3\n[rank.judge]\ntype = "rule"\nrule = "concise"\n'
    )
    return path


COMING = """import gc, os, signal, sys, threading, time, weakref
from flows import sample_and_train
from prefect.utilities.engine import capture_sigterm
def come(*given):
    os.kill(os.getpid(), signal.SIGTERM)
class Half:
    def __init__(self):
        self.half = self
    def __del__(self):
        come()
class Lock:
    def __init__(self):
        self.lock = threading.Lock()
    def __enter__(self):
        self.lock.acquire()
        os.kill(os.getpid(), signal.SIGTERM)
    def __exit__(self, *raised):
        self.lock.release()
with capture_sigterm():
    if sys.argv[1] == "finalizer":
        Half()
        gc.collect()
    elif sys.argv[1] == "callback":
        lock = Lock()
        called = weakref.ref(lock, come)
        del lock
    else:
        lock = Lock()
        try:
            with lock:
                time.sleep(10)
        finally:
            print("locked" if lock.lock.locked() else "let go", flush=True)
    time.sleep(10)
"""


@pytest.mark.parametrize(("where", "said"), [("finalizer", ""), ("callback", ""), ("with", "let go\n")])
def test_prefects_sigterm_at_a_bad_moment_is_heard_and_leaves_no_lock_taken(where: str, said: str) -> None:
    """Without our help its exception is dropped in the first two, and the flow run goes on."""
    done = subprocess.run([sys.executable, "-c", COMING, where], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, said, "")


OUTSIDE = """import signal, sys
from flows import sample_and_train
from prefect.utilities import engine
signal.signal(signal.SIGTERM, engine._prefect_sigterm_handler)
print("ready", flush=True)
sys.exit(sample_and_train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_sigterm_that_prefects_handler_raises_outside_its_engine_is_told_in_one_line(slow: Path) -> None:
    """It is there a moment longer than what catches it."""
    command = [sys.executable, "-c", OUTSIDE, str(slow)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ALONE
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(1)  # it starts its server, and waits for it
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert len(said.splitlines()) == 2 and "stopped. What is finished is kept; go on with" in said, said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_the_script_says_that_it_was_stopped_and_the_server_hears_of_it(
    slow: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [*SCRIPT, str(slow), "--run", str(tmp_path / "run")]
    process = _start(command, tmp_path / "run", shards=2, env={"PREFECT_API_URL": PREFECT_API_URL.value()})
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines()[-1].endswith(f"go on with `python {' '.join(command[1:])}`") and "Traceback" not in said
    assert last_run()["state"]["type"] == "CRASHED"


@pytest.mark.slow
def test_asked_to_end_while_the_server_is_away_it_ends_sooner_than_prefects_client_gives_up(slow: Path, tmp_path: Path) -> None:
    """That takes two and a half minutes."""
    server = Prefect(tmp_path)
    try:
        command = [*SCRIPT, str(slow), "--run", str(tmp_path / "run")]
        env = {name: server.env[name] for name in ("PREFECT_HOME", "PREFECT_API_URL")}
        process = _start(command, tmp_path / "run", shards=2, env=env)
    finally:
        server.server.kill()
        server.server.wait()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 143
    assert f"go on with `python {' '.join(command[1:])}`" in said


@pytest.mark.slow
def test_stopped_then_killed_a_run_ends_with_the_same_pairs(slow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*SCRIPT, str(slow), "--run", str(run)]

    stopped = _start(command, run, shards=2)
    began = time.monotonic()
    os.killpg(stopped.pid, signal.SIGINT)  # as the terminal does
    _, said = stopped.communicate()
    assert time.monotonic() - began < 60
    assert stopped.returncode == 130
    assert f"go on with `python {' '.join(command[1:])}`" in said and "Traceback" not in said

    killed = _start(command, run, shards=5)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    assert children, "its own server, at least"
    assert not psutil.wait_procs(children, timeout=60)[1]

    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True)
    shown = os.read(screen, 100_000).decode()
    assert done.returncode == 0, shown
    assert done.stdout.splitlines()[-1].endswith(str(run / "report.html"))
    assert "sample " in shown and "100%" in shown, "a progress bar"
    assert "prefect" not in shown.lower() and "flow run" not in shown.lower()

    pipeline.run(config.load(slow), RunDir(tmp_path / "untouched"))
    assert pairs(run) == pairs(tmp_path / "untouched")


def _start(command: list[str], run: Path, shards: int, env: dict[str, str] = ALONE) -> "subprocess.Popen[str]":
    """The script in a process group of its own, once it has finished that many shards."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, env=os.environ | env, **options)
    for _ in range(3000):
        if len(RunDir(run).stage("sample").shards()) >= shards:
            assert RunDir(run).stage("sample").manifest is None, "the run is over already"
            return process
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no shard appeared")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--set", "sample.k=4"], 2, "sample-and-train: error: Unknown key 'sample.k' in "),
        (["--set", "prompts.path=none.jsonl"], 2, "sample-and-train: error: "),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(
    slow: Path, tmp_path: Path, arguments: list[str], code: int, line: str
) -> None:
    command = [*SCRIPT, str(slow), "--run", str(tmp_path / "run"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


DRAINED = """
import asyncio, sys
from prefect._internal.concurrency.services import QueueService
from flows import sample_and_train
class EventsWorker(QueueService):
    async def _handle(self, item):
        await asyncio.sleep(0.1)
if sys.argv[1] == "quiet":
    sample_and_train._quieten()
service = EventsWorker.instance()
for at in range(4):
    service.send(at)
service.drain()
"""


@pytest.mark.parametrize("how", ["quiet", "loud"])
def test_what_prefect_says_as_it_sends_its_last_events_is_not_shown(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", DRAINED, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("Still processing items" in done.stderr) == (how == "loud")
    assert how == "loud" or done.stderr == ""
