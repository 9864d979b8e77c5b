"""What keeps a deployment going: one flow run at a time has the GPU, dead ones are told, failures call a webhook; on PostgreSQL
as on SQLite."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from glob import glob
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import gpu_flow
import psutil
import pytest
from deployed import Deployed, deploying, environment, request
from prefect.settings import PREFECT_API_URL, temporary_settings
from usage import free_port, wait

from dpo_data.config import Recipe, dump, parse
from dpo_data.rundir import RunDir
from flows import gc, gpu, notify
from flows import sample_and_train as flow_module

INITDB = shutil.which("initdb", path=":".join([os.environ["PATH"], *glob("/usr/lib/postgresql/*/bin")]))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deploying(tmp_path_factory.mktemp("user")) as here:
        yield here


def deploy_hold(here: Deployed, name: str) -> str:
    """A deployment of the flow in gpu_flow.py. Returns its id."""
    nightly = here.ask("/deployments/name/sample-and-train/nightly")
    flow = here.ask("/flows/", name="gpu-flow")
    given = {"flow_id": flow["id"], "entrypoint": f"{gpu_flow.__file__}:hold"}
    same = {key: nightly[key] for key in ("path", "work_pool_name", "pull_steps")}
    return str(here.post("/deployments/", {"name": name, **same, **given}).raise_for_status().json()["id"])


def run(here: Deployed, deployment: str, **parameters: Any) -> str:
    """Have a deployment run. Returns the flow run's id."""
    return str(here.ask(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"])


def state(here: Deployed, id: str) -> str:
    return str(here.ask(f"/flow_runs/{id}")["state_type"])


def ended(here: Deployed, *ids: str) -> bool:
    return all(state(here, id) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for id in ids)


@pytest.mark.slow
def test_two_deployments_never_have_the_gpu_at_once(deployed: Deployed) -> None:
    limit = deployed.ask("/v2/concurrency_limits/gpu")
    assert limit["limit"] == gpu.slots() and limit["active_slots"] == 0
    assert limit["limit"] == 1 or pytest.skip("two GPUs are two places")
    deployments = [deploy_hold(deployed, name) for name in ("one", "other")]
    held = deployed.folder / "held.txt"
    first, second = (run(deployed, one, file=str(held), seconds=300) for one in deployments)
    wait(lambda: held.exists() and {state(deployed, first), state(deployed, second)} == {"RUNNING"}, 120)
    assert held.read_text().count("begins") == 1, "both run, and one of them waits"
    Path(f"{held}.stop").touch()
    wait(lambda: ended(deployed, first, second), 120)
    assert [state(deployed, id) for id in (first, second)] == ["COMPLETED"] * 2
    lines = [line.split() for line in held.read_text().splitlines()]
    assert [what for _, what, _ in lines] == ["begins", "ends"] * 2, "they took turns"
    assert len({pid for *_, pid in lines}) == 2


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address on this machine, and what was sent there."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append({"type": self.headers["Content-Type"], **json.loads(body)})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *about: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret-path", sent
        server.shutdown()


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_a_webhook_is_told(deployed: Deployed) -> None:
    """It fails for want of a limit, which is also how a flow run without one ends."""
    deployment = deploy_hold(deployed, "failing")
    env = environment(deployed.folder) | {"PREFECT_API_URL": deployed.url}
    none = deployed.folder / "none.txt"
    with webhook() as (url, sent):
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, notify.__file__], env=env | {notify.VARIABLE: url}, capture_output=True, text=True
            )
            assert done.returncode == 0 and "told to the webhook" in done.stdout, done.stderr
        assert [one["name"] for one in deployed.ask("/automations/filter", limit=50)].count(notify.NAME) == 1
        id = deployed.ask(
            f"/deployments/{deployment}/create_flow_run",
            parameters={"file": str(none), "seconds": 0},
            job_variables={"env": {gpu.VARIABLE: "gpu-elsewhere"}},
        )["id"]
        wait(lambda: ended(deployed, id), 180)
        wait(lambda: sent, 180)
    told = deployed.ask(f"/flow_runs/{id}")
    assert told["state_type"] == "FAILED" and "prefect gcl create gpu-elsewhere --limit N" in told["state"]["message"]
    assert not none.exists()
    [said] = sent
    assert said["type"] == "application/json" and said["text"].startswith(f"gpu-flow/{told['name']} Failed: ")
    assert "gcl create gpu-elsewhere" in said["text"]
    blocks = deployed.ask("/block_documents/filter", limit=50)
    assert "secret-path" not in json.dumps(blocks), "the address is shown to nobody"


def test_notify_says_what_is_not_set(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = subprocess.run([sys.executable, notify.__file__], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == f"notify: error: {notify.VARIABLE} is not set. Set it, and run this again.\n"


@pytest.mark.slow
def test_a_flow_run_whose_process_is_gone_is_crashed_and_a_living_or_a_distant_one_is_not(deployed: Deployed) -> None:
    """The worker is stopped meanwhile: one that lives tells the server itself."""
    deployment, files = deploy_hold(deployed, "killed"), deployed.folder
    living = run(deployed, deployment, file=str(files / "living.txt"), seconds=300)
    wait((files / "living.txt").exists, 180)
    dead = run(deployed, deployment, file=str(files / "dead.txt"), seconds=0)
    wait(lambda: gc.HOST in deployed.ask(f"/flow_runs/{dead}")["labels"], 180)
    pid = int(deployed.ask(f"/flow_runs/{dead}")["infrastructure_pid"])
    worker = psutil.Process(pid).parent()
    assert worker
    assert gc.end_dead_runs(deployed.url) == []

    worker.suspend()
    try:
        os.kill(pid, signal.SIGKILL)
        wait(lambda: [one["id"] for one in gc.end_dead_runs(deployed.url, act=False)] == [dead], 120)
        here = {gc.HOST: socket.gethostname()}
        labels = f"{deployed.url}/flow_runs/{dead}/labels"
        assert request("PATCH", labels, json={gc.HOST: "another"}).is_success
        assert gc.end_dead_runs(deployed.url) == []
        assert request("PATCH", labels, json=here).is_success

        env = environment(deployed.folder) | {"PREFECT_API_URL": deployed.url}
        said = [
            subprocess.run([sys.executable, "-m", "dpo_data.cli", "gc", *yes], env=env, capture_output=True, text=True).stdout
            for yes in ([], ["--yes"])
        ]
        assert "flow runs: 1 whose process on this machine is gone would be Crashed with --yes" in said[0]
        assert "flow runs: 1 whose process on this machine is gone are now Crashed" in said[1]
        assert (state(deployed, dead), state(deployed, living)) == ("CRASHED", "RUNNING")
    finally:
        worker.resume()
        (files / "living.txt.stop").touch()
    wait(lambda: ended(deployed, living), 180)
    assert (state(deployed, dead), state(deployed, living)) == ("CRASHED", "COMPLETED")


@pytest.mark.parametrize("password", ["", "me:p@ss@"])
def test_gc_without_a_server_says_so(tmp_path: Path, password: str) -> None:
    env = environment(tmp_path) | {"PREFECT_API_URL": f"http://{password}127.0.0.1:1/api"}
    done = subprocess.run([sys.executable, gc.__file__], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        0,
        "flow runs: not looked at, for no Prefect server answers at http://127.0.0.1:1/api\n",
    )


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        ([503, 503, 503, 200], "0 whose process on this machine is gone"),
        ([401], "not looked at, for the server at {url} refuses: set PREFECT_API_AUTH_STRING"),
        ([500], "not looked at, for the server at {url} answers 500: run this again"),
    ],
)
def test_gc_asks_a_busy_server_again(statuses: list[int], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(statuses.pop(0))
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *about: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            assert gc.main([]) == 0
        server.shutdown()
    assert capsys.readouterr().out == f"flow runs: {says.format(url=url)}\n" and not statuses


@contextmanager
def prefect(answers: dict[str, Any]) -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server that answers POSTs by their path's end, and how who asked signed in."""
    signed: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            signed.append(self.headers["Authorization"])
            answer = next((told for end, told in answers.items() if self.path.endswith(end)), None)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *about: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api", signed
        server.shutdown()


@pytest.mark.parametrize(
    ("workers", "ends"), [(None, True), ([], True), ([socket.gethostname()], True), ([socket.gethostname(), "another"], False)]
)
def test_what_had_not_begun_is_dead_only_where_no_other_machine_may_begin_it(workers: list[str] | None, ends: bool) -> None:
    waiting = {"id": "w", "name": "waiting", "labels": {}, "infrastructure_pid": None}
    elsewhere = {**waiting, "id": "e", "labels": {gc.HOST: "another"}}
    names = None if workers is None else [{"name": name} for name in workers]
    with prefect({"/flow_runs/filter": [waiting, elsewhere], "/workers/filter": names, "/set_state": {}}) as (url, _):
        assert gc.end_dead_runs(url, unclaimed=True) == ([waiting] if ends else [])
        assert gc.end_dead_runs(url) == []


def test_a_password_in_the_servers_address_signs_in_and_is_not_shown(tmp_path: Path) -> None:
    with prefect({"/flow_runs/filter": None}) as (url, signed):
        env = environment(tmp_path) | {"PREFECT_API_URL": url.replace("//", "//me:p%40ss@")}
        done = subprocess.run([sys.executable, gc.__file__], env=env, capture_output=True, text=True)
    assert done.stdout == f"flow runs: not looked at, for the server at {url} answers 404: run this again\n", done.stderr
    assert signed == [f"Basic {b64encode(b'me:p@ss').decode()}"] and not done.stderr


def test_every_script_signs_in_before_it_says_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And notify prints it."""
    asked: list[str] = []

    def signed_in(url: str) -> str:
        asked.append(url)
        return "http://plain/api"

    monkeypatch.setenv(notify.VARIABLE, "http://hook")
    monkeypatch.setattr(notify, "signed_in", signed_in)
    monkeypatch.setattr(gc, "signed_in", signed_in)
    monkeypatch.setattr(notify, "notify", lambda url: None)
    monkeypatch.setattr(flow_module, "sample_and_train", lambda *given: "done")
    (tmp_path / "r.toml").write_text(dump(parse(gpu_flow.RECIPE)))
    with temporary_settings({PREFECT_API_URL: "http://me:pass@host/api"}), redirect_stdout(io.StringIO()) as said:
        assert notify.main() == flow_module.main([str(tmp_path / "r.toml")]) == 0
    assert asked == ["http://me:pass@host/api"] * 2 and "webhook: http://plain/automations" in said.getvalue()


def test_a_temporary_server_gives_its_answers_to_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """To begin a real one costs many seconds; that the setting is obeyed is looked at where one is deployed."""
    given: list[dict[str, str]] = []

    class Child:
        def __init__(self, target: str, logger: str, env: dict[str, str]):
            given.append(env)

        def receive(self) -> Any:
            raise InterruptedError

        def close(self) -> None: ...

    monkeypatch.setattr(flow_module, "Child", Child)
    with pytest.raises(InterruptedError):
        flow_module.start_server()
    assert given[0]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "none"


VLLM, ECHO = {"type": "vllm", "model": "m"}, {"type": "echo"}
TWO = {"type": "vllm", "model": "n", "args": {"tensor_parallel_size": 2}}
RULE = {"type": "rule", "rule": "concise"}
REWARD = {"type": "reward_model", "model": "r"}


@pytest.mark.parametrize(
    ("engine", "judge", "more", "held"),
    [
        (ECHO, RULE, {}, {}),
        (VLLM, RULE, {}, {"sample": 1, "evaluate": 1}),
        (TWO, RULE, {}, {"sample": 2, "evaluate": 2}),
        ({**VLLM, "workers": 4, "gpus_per_worker": 0.5}, RULE, {}, {"sample": 2, "evaluate": 2}),
        ({**VLLM, "workers": 4, "gpus_per_worker": 0}, RULE, {}, {"sample": 1, "evaluate": 1}),
        ({"type": "mix", "engines": [ECHO, TWO]}, RULE, {}, {"sample": 2, "evaluate": 2}),
        (ECHO, REWARD, {}, {"rank": 1, "evaluate": 1}),
        (ECHO, {"type": "pairwise", "engine": VLLM}, {}, {"rank": 1, "evaluate": 1}),
        (ECHO, {"type": "pairwise", "engine": {"type": "server", "base_url": "http://h/v1", "model": "m"}}, {}, {}),
        (ECHO, {"type": "panel", "judges": [RULE, REWARD]}, {}, {"rank": 1, "evaluate": 1}),
        (ECHO, RULE, {"train": {"model": "m", "processes": 2}}, {"train": 2, "evaluate": 1}),
        (TWO, RULE, {"train": {}}, {"sample": 2, "train": 1, "evaluate": 2}),
        (VLLM, {"type": "pairwise"}, {}, {"sample": 1, "rank": 1, "evaluate": 1}),
        (ECHO, {"type": "panel", "judges": [RULE, {"type": "rubric"}]}, {}, {}),
    ],
)
def test_a_stage_holds_the_gpus_of_its_own_models(engine: Any, judge: Any, more: Any, held: dict[str, int]) -> None:
    made = parse({**gpu_flow.RECIPE, "sample": {"n": 2, "engine": engine}, "rank": {"judge": judge}, **more})
    assert {name: count for name in flow_module.pipeline.STAGES if (count := gpu.wanted(name, made))} == held


def test_a_machine_has_a_slot_for_each_gpu_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (gpu.on_this_machine(), gpu.slots()) == (0, 1)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    program.chmod(0o755)
    assert (gpu.on_this_machine(), gpu.slots()) == (2, 2)
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert (gpu.on_this_machine(), gpu.slots()) == (0, 1)


def test_a_ray_cluster_lends_its_gpus_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    made = parse({**gpu_flow.RECIPE, "sample": {"n": 2, "engine": {**VLLM, "workers": 4}}})
    assert gpu.wanted("sample", made) == 0


def test_a_stage_asks_for_the_gpu_around_all_that_it_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def held(name: str, recipe: Recipe) -> Iterator[None]:
        said.append(f"{name} has it")
        yield
        said.append("gives it back")

    monkeypatch.setattr(gpu, "held", held)
    monkeypatch.setattr(flow_module, "shown", lambda *given: nullcontext())
    monkeypatch.setattr(flow_module.pipeline, "run_stage", lambda name, *given: said.append(f"{name} runs"))
    flow_module.stage.fn("sample", parse(gpu_flow.RECIPE), RunDir(tmp_path))
    assert said == ["sample has it", "sample runs", "gives it back"]


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own on loopback, as the URL that Prefect wants. It refuses to run as root."""
    assert INITDB
    root = os.geteuid() == 0
    who: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if root:
            shutil.chown(folder, "postgres", "postgres")
        port = free_port()
        subprocess.run(
            [INITDB, "-D", f"{folder}/data", "-U", "prefect", "--auth=trust"], check=True, capture_output=True, **who
        )
        command = [str(Path(INITDB).resolve().with_name("postgres")), "-D", f"{folder}/data", "-k", folder]
        with subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL, cwd=folder, **who
        ) as process:
            try:
                wait(lambda: _listens(port), 180)
                yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
            finally:
                process.send_signal(signal.SIGINT)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not INITDB, reason="no PostgreSQL on this machine")
def test_on_postgresql_two_workers_take_turns_at_one_gpu(tmp_path: Path) -> None:
    password = {"PREFECT_SERVER_API_AUTH_STRING": "admin:secret", "PREFECT_API_AUTH_STRING": "admin:secret"}
    with postgres() as url, deploying(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=url, **password) as here:
        assert request("GET", f"{here.url}/work_pools/dpo-data").status_code == 401, "nobody is let in without the password"
        env = environment(tmp_path) | password | {"PREFECT_API_URL": here.url}
        assert "PREFECT_WORKER_QUERY_SECONDS" not in here.worker(), "its database may well be away for some seconds"
        here.url = here.url.replace("//", "//admin:secret@")
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", gc.POOL, "--name", "second"]
        with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as second:
            try:
                wait(lambda: len(here.ask("/work_pools/dpo-data/workers/filter", limit=9)) == 2, 180)
                deployment, held = deploy_hold(here, "one"), tmp_path / "held.txt"
                ids = [run(here, deployment, file=str(held), seconds=1) for _ in range(3)]
                wait(lambda: ended(here, *ids), 180)
                assert [state(here, id) for id in ids] == ["COMPLETED"] * 3
            finally:
                second.send_signal(signal.SIGINT)
        assert [line.split()[1] for line in held.read_text().splitlines()] == ["begins", "ends"] * 3
        told = subprocess.run([sys.executable, gc.__file__], env=env, capture_output=True, text=True).stdout
        assert told == "flow runs: 0 whose process on this machine is gone\n"
        env |= {"PREFECT_API_AUTH_STRING": "admin:guessed"}
        told = subprocess.run([sys.executable, gc.__file__], env=env, capture_output=True, text=True).stdout
        assert "refuses: set PREFECT_API_AUTH_STRING" in told
        assert not list((tmp_path / "prefect").glob("*.db")), "nothing went into SQLite"
