"""Faults where Prefect runs the flow: of the flow's process, of the worker and the server, and by a cancellation."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from striking import MARK, Case, Injected, Shot, chains, finish, left, rows
from usage import free_port, wait

from dpo_data.rundir import RunDir

FLOWS = Path(__file__).parents[1] / "flows"
NIGHTLY = "/deployments/name/sample-and-train/nightly"
PATIENCE = 300
"""Seconds for what takes some on a machine that is busy."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Prefect:
    """A server and a worker, each of which may be killed and started again, with their database in `folder`."""

    def __init__(self, folder: Path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._folder = folder
        self.env = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        }
        self.serve()

    def serve(self) -> None:
        """Start the server, and wait until it answers."""
        from flows import server

        command = [*server.COMMAND, "--port", str(self.port)]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen(command, env=server.SETTINGS | self.env, **quiet)
        wait(lambda: self.answers("/health"), PATIENCE)

    def answers(self, path: str) -> Any:
        """What the server answers; None where it does not."""
        try:
            answer = httpx.get(self.url + path, timeout=30)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def ask(self, path: str, body: Any) -> Any:
        """What the server answers to a POST. One that is busy is asked again, as Prefect's own client does."""
        while (answer := httpx.post(self.url + path, json=body, timeout=PATIENCE)).status_code == 503:
            time.sleep(0.5)
        return answer.raise_for_status().json()

    @contextmanager
    def worker(self, mark: str) -> Iterator["subprocess.Popen[bytes]"]:
        """`dpo-data deploy` on that server, with its worker, all marked."""
        said = self._folder / f"{mark}.txt"
        with said.open("w") as out:
            command = [sys.executable, str(FLOWS / "deploy.py"), "--port", str(self.port)]
            process = subprocess.Popen(command, cwd=self._folder, env=self.env | {MARK: mark}, stdout=out, stderr=out)
        try:
            wait(lambda: "started!" in said.read_text() or process.poll() is not None, PATIENCE)
            assert process.poll() is None, said.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)

    def begin(self, case: Case, name: str, shards: int) -> dict[str, Any]:
        """A flow run by the deployment, once it has so many shards. It samples for ten seconds, for Prefect is slow to ask."""
        (self._folder / f"{name}.toml").write_text(case.recipe.replace("delay = 0.004", "delay = 0.1"))
        body = {"parameters": {"recipe": f"{name}.toml", "run": name}, "state": {"type": "SCHEDULED"}}
        run = self.ask(f"/deployments/{self.answers(NIGHTLY)['id']}/create_flow_run", body)
        wait(lambda: len(RunDir(self._folder / name).stage("sample").shards()) >= shards, PATIENCE)
        found: dict[str, Any] = self.answers(f"/flow_runs/{run['id']}")
        return found

    def ended(self, run: dict[str, Any]) -> str:
        """The state in which a flow run ends."""

        def state() -> str | None:
            kind = (self.answers(f"/flow_runs/{run['id']}") or {}).get("state_type")
            return kind if kind in ENDED else None

        return str(wait(state, PATIENCE))


def on_prefect(folder: Path, case: Case, shots: Iterable[Iterable[Shot]], like: RunDir, around: bool = True) -> list[Injected]:
    """The faults of the flow's process, and, unless not asked for, one each of what is around it."""
    prefect = Prefect(folder)
    try:
        env = {name: prefect.env[name] for name in ("PREFECT_HOME", "PREFECT_API_URL")}
        flow = Case(folder, case.recipe, env, (str(FLOWS / "sample_and_train.py"),))
        return chains(flow, "flow", shots, like) + (_around(prefect, case, like) if around else [])
    finally:
        prefect.server.kill()
        prefect.server.wait()


def _around(prefect: Prefect, case: Case, like: RunDir) -> list[Injected]:
    with prefect.worker(uuid.uuid4().hex) as deploy:
        # First: a worker that was without its server for half a minute hears of no cancellation any more.
        found = [_cancelled(prefect, case, like)]
        found.append(_server_restarted(prefect, case, like))
        found.append(_worker_struck(prefect, case, like, deploy, signal.SIGKILL))
    with prefect.worker(uuid.uuid4().hex) as deploy:
        found.append(_worker_struck(prefect, case, like, deploy, signal.SIGTERM))
    return found


def _server_restarted(prefect: Prefect, case: Case, like: RunDir) -> Injected:
    """The server is killed while a flow run samples, and comes back: the run ends well, and the server knows of it."""
    run = prefect.begin(case, "server", 3)
    prefect.server.kill()
    prefect.server.wait()
    time.sleep(2)
    prefect.serve()
    state = prefect.ended(run)
    why = "" if state == "COMPLETED" else f"the flow run ended {state}"
    why = why or ("" if rows(RunDir(case.folder / "server")) == rows(like) else "its rows are others")
    return Injected("SIGKILL of Prefect's server, then a new one", "sample", 0, why)


def _cancelled(prefect: Prefect, case: Case, like: RunDir) -> Injected:
    """A flow run is cancelled by the API: its processes end, and another run on its directory goes on."""
    run = prefect.begin(case, "cancelled", 5)
    below = psutil.Process(int(run["infrastructure_pid"]))
    family = [below, *below.children(recursive=True)]
    prefect.ask(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    state = prefect.ended(run)
    alive = psutil.wait_procs(family, timeout=30)[1]
    why = "" if state == "CANCELLED" else f"the flow run ended {state}"
    why = why or (f"processes were left: {alive}" if alive else "")
    return Injected("cancelled by Prefect's API", "sample", 0, why or finish(case, RunDir(case.folder / "cancelled"), like))


def _worker_struck(
    prefect: Prefect, case: Case, like: RunDir, deploy: "subprocess.Popen[bytes]", number: signal.Signals
) -> Injected:
    """The worker gets a signal while a flow run samples: `dpo-data deploy` ends, with all that it started."""
    name = f"worker-{number.name.lower()}"
    prefect.begin(case, name, 4)
    [worker] = [one for one in psutil.Process(deploy.pid).children(recursive=True) if _is_worker(one)]
    mark = psutil.Process(deploy.pid).environ()[MARK]
    worker.send_signal(number)
    deploy.wait(PATIENCE)
    alive = left(mark)
    why = f"processes were left: {alive}" if alive else finish(case, RunDir(case.folder / name), like)
    return Injected(f"{number.name} of Prefect's worker", "sample", 0, why)


def _is_worker(process: psutil.Process) -> bool:
    return [part for part in process.cmdline() if part in ("worker", "start")] == ["worker", "start"]
