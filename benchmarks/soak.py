"""A schedule each minute on a real Prefect server and worker: does every run fire and end, beside one hung, killed, cancelled?

    python benchmarks/soak.py [--minutes 60] [--folder DIR]
    python benchmarks/soak.py --asked 30 [--folder DIR]

`dpo-data deploy` serves from a folder and a database of its own; a run samples by the echo engine for ten seconds, ranks, pairs
and reports. Of the five runs or more, one is stopped in the middle (SIGSTOP: it neither ends nor dies, and is cancelled at the
end), one gets SIGKILL, and one is cancelled by the API. What is told of each: when the worker submitted it and when it was
Running, both in seconds after its minute, and its last state. The schedule is made half a minute before its first run or more;
how soon a run begins that has no such notice is what `--asked` tells, by so many runs that are asked for at once, one after the
other. In a DIR that is empty the server's log, the worker's and the database stay, to see why a run was late.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from usage import free_port, wait

from dpo_data.rundir import RunDir
from flows import deploy

TELLING = {"PREFECT_SERVER_LOG_RETRYABLE_ERRORS": "true", "PREFECT_LOGGING_LOGGERS_PREFECT_CLIENT_LEVEL": "DEBUG"}
"""What has Prefect log the requests that a busy database refuses, each of which is tried again after 2, 4, 8… s."""
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
RECIPE = """name = "soak"
[prompts]
path = "prompts.jsonl"
[sample]
n = 4
max_tokens = 8
shard_size = 4
engine = { type = "echo", delay = 0.25 }
[rank.judge]
type = "rule"
rule = "concise"
"""


@dataclass
class Fired:
    """One run of the schedule. `submitted` and `running`: seconds after its minute, below 0 where before; `ended`: its last
    state; `struck`: what was done to it; `digest`: that of its pairs."""

    minute: str
    submitted: float
    running: float
    ended: str
    seconds: float
    struck: str
    digest: str | None


@dataclass
class Soaked:
    """All that was measured. Sizes are in bytes, `cpu` in seconds of all processes; `left`: processes and temporary files that
    outlived the end."""

    fired: list[Fired] = field(default_factory=list)
    database: list[int] = field(default_factory=list)
    server_log: int = 0
    worker_log: int = 0
    run_log: int = 0
    cpu: float = 0.0
    left: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Markdown: a row for what was struck and one for all the rest."""
        rest = [one for one in self.fired if not one.struck]
        rows = [(one.struck, [one]) for one in self.fired if one.struck] + [("nothing", rest)]
        lines = ["| done to it | runs | submitted | Running, median | latest | ended |", "|---|---|---|---|---|---|"]
        for what, runs in rows:
            late, early = sorted(one.running for one in runs), min(one.submitted for one in runs)
            ended = ", ".join(sorted({one.ended for one in runs}))
            lines.append(
                f"| {what} | {len(runs)} | {early:+.1f} s | {late[len(late) // 2]:+.2f} s | {late[-1]:+.2f} s | {ended} |"
            )
        return "\n".join(lines)

    def sizes(self) -> str:
        """What a schedule's runs left and took, in a line."""
        grown = (self.database[-1] - self.database[0]) / max(1, len(self.fired))
        sizes = f"database {self.database[-1] / 1e6:.1f} MB, {grown / 1e3:.0f} kB a run"
        kilobytes = {"server": self.server_log / 1e3, "worker": self.worker_log / 1e3, "a run": self.run_log / 1e3}
        logs = "logs: " + ", ".join(f"{who} {size:.1f} kB" for who, size in kilobytes.items())
        return f"{sizes}; {logs}; {self.cpu:.0f} s of CPU; {len(self.left)} processes or temporary files left"


def soak(folder: Path, minutes: int) -> Soaked:
    """So many minutes of the schedule, in an empty folder. The struck runs are spread over them."""
    strikes = {max(1, minutes // 5): _hang, minutes // 2: _kill, minutes * 7 // 10: _cancel}
    told = Soaked()
    with _deployed(folder, told) as (process, ask):
        deployment, pids, done = _every_minute(ask), set[int](), dict[str, str]()
        while True:
            told.database.append(_database(folder))
            runs = ask("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"})
            begun = [run for run in runs if run["start_time"]][:minutes]
            pids |= {int(run["infrastructure_pid"]) for run in begun if run["infrastructure_pid"]}
            for at, run in enumerate(begun):
                if at in strikes and run["id"] not in done and _samples(folder, run):
                    done[run["id"]] = strikes[at](ask, run)
            if len(begun) == minutes:
                ask(f"/deployments/{deployment}/pause_deployment", {})
                if all(run["state_type"] in ENDED or done.get(run["id"]) == "hung" for run in begun):
                    break
            assert process.poll() is None, (folder / "said.txt").read_text()
            time.sleep(2)
        [hung] = [run for run in begun if done.get(run["id"]) == "hung"]
        assert ask(f"/flow_runs/{hung['id']}")["state_type"] == "RUNNING"
        _cancel(ask, hung)
        wait(lambda: ask(f"/flow_runs/{hung['id']}")["state_type"] in ENDED, 120)
        told.fired = [_told(folder, ask, run["id"], done.get(run["id"], "")) for run in begun]
        told.database.append(_database(folder))
    told.left += [str(pid) for pid in pids if psutil.pid_exists(pid)]
    told.left += [str(path) for path in (folder / "temp").rglob("*") if path.is_file()]
    told.server_log = sum(path.stat().st_size for path in (folder / "prefect").glob("dpo-data-server.log*"))
    told.worker_log = (folder / "said.txt").stat().st_size
    told.run_log = max(path.stat().st_size for path in folder.glob("runs/*/logs/run.log"))
    return told


def asked(folder: Path, runs: int) -> Soaked:
    """So many runs, each asked for once the one before has ended; its seconds are those since then."""
    told = Soaked()
    with _deployed(folder, told) as (_, ask):
        deployment, ids = _deployment(ask, []), []
        for _ in range(runs):
            time.sleep(random.uniform(0, 10))
            ids.append(ask(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"])
            wait(lambda: ask(f"/flow_runs/{ids[-1]}")["state_type"] in ENDED, 120)
        told.fired = [_told(folder, ask, id, "") for id in ids]
    return told


Ask = Callable[..., Any]


def _hang(ask: Ask, run: dict[str, Any]) -> str:
    os.kill(int(run["infrastructure_pid"]), signal.SIGSTOP)
    return "hung"


def _kill(ask: Ask, run: dict[str, Any]) -> str:
    os.kill(int(run["infrastructure_pid"]), signal.SIGKILL)
    return "killed"


def _cancel(ask: Ask, run: dict[str, Any]) -> str:
    ask(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    return "cancelled"


def _samples(folder: Path, run: dict[str, Any]) -> bool:
    """Whether a run is in the middle of its first stage."""
    stage = _run_of(folder, run).stage("sample")
    return bool(stage.shards()) and not stage.manifest and run["state_type"] == "RUNNING"


def _run_of(folder: Path, run: dict[str, Any]) -> RunDir:
    return RunDir(folder / "runs" / f"soak-{datetime.fromisoformat(run['expected_start_time']):%Y-%m-%dT%H%M}")


def _every_minute(ask: Ask) -> str:
    """A deployment that is due each minute, and for the first time in half a minute or later. Returns its id."""
    into = time.time() % 60
    time.sleep(60 - into if into > 30 else 0)
    return _deployment(ask, [{"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}])


def _deployment(ask: Ask, schedules: list[dict[str, Any]]) -> str:
    """A deployment beside those of prefect.yaml, on the same flow. Returns its id."""
    nightly = ask("/deployments/name/sample-and-train/nightly")
    same = ("flow_id", "entrypoint", "path", "work_pool_name", "pull_steps", "parameter_openapi_schema")
    given = {"recipe": "soak.toml", "run": "runs/{name}-{date}"}
    made = {key: nightly[key] for key in same} | {"name": "soak", "schedules": schedules, "parameters": given}
    return str(ask("/deployments/", made)["id"])


def _told(folder: Path, ask: Ask, id: str, struck: str) -> Fired:
    run = ask(f"/flow_runs/{id}")
    states = ask(f"/flow_run_states/?flow_run_id={id}")
    due = datetime.fromisoformat(run["expected_start_time"])

    def after(kind: str) -> float:
        return min((datetime.fromisoformat(one["timestamp"]) - due).total_seconds() for one in states if one["type"] == kind)

    pairs = _run_of(folder, run).stage("pair")
    lasted = after(run["state_type"]) - after("RUNNING")
    return Fired(f"{due:%H:%M}", after("PENDING"), after("RUNNING"), run["state_type"], lasted, struck, pairs.digest)


def _database(folder: Path) -> int:
    """Bytes of Prefect's database, with its write-ahead log."""
    return sum(path.stat().st_size for path in (folder / "prefect").glob("prefect.db*"))


@contextmanager
def _deployed(folder: Path, told: Soaked) -> Iterator[tuple["subprocess.Popen[str]", Ask]]:
    """`dpo-data deploy` at work, beside a recipe, and how to ask its server; a GET where there is no body."""
    (folder / "soak.toml").write_text(RECIPE)
    prompts = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers"}) for at in range(40))
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    port = free_port()
    temp = folder / "temp"
    temp.mkdir()
    env = {**os.environ, **TELLING, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": "", "TMPDIR": str(temp)}
    with (folder / "said.txt").open("w") as said:
        command = [sys.executable, deploy.__file__, "--port", str(port)]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said, text=True)
    try:
        wait(lambda: "started!" in (folder / "said.txt").read_text() or process.poll() is not None, 300)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60) as client:

            def ask(path: str, body: Any = None) -> Any:
                """What the server answers; one that is busy is asked again, as Prefect's own client does."""
                for _ in range(20):
                    with suppress(httpx.TimeoutException):
                        answer = client.get(path) if body is None else client.post(path, json=body)
                        if answer.status_code != 503:
                            return answer.raise_for_status().json() if answer.content else None
                    time.sleep(0.5)
                raise TimeoutError(f"the server is busy: {path}")

            yield process, ask
    finally:
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        told.cpu = sum(sum(one.cpu_times()[:4]) for one in everybody)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        told.left += [str(one) for one in psutil.wait_procs(everybody, timeout=5)[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--asked", type=int, metavar="N", help="so many runs that are asked for, in place of a schedule")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would deploy
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        told = asked(Path(folder), given.asked) if given.asked else soak(Path(folder), given.minutes)
    for one in told.fired:
        struck = f"  {one.struck}" if one.struck else ""
        print(f"{one.minute}  submitted {one.submitted:+6.1f} s  running {one.running:+5.2f} s  {one.ended:<9}{struck}")
    print("", told.table(), *([] if given.asked else ["", told.sizes()]), sep="\n")


if __name__ == "__main__":
    main()
