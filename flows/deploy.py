"""What `dpo-data deploy` runs: a Prefect server where none answers, the deployments of prefect.yaml, a worker until Ctrl-C."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import httpx
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from dpo_data.errors import DpoDataError
from dpo_data.share import SHIPPED

POOL = "dpo-data"
LOOPBACK = ("127.0.0.1", "localhost")
TIMEOUT = 30
"""Seconds for one answer of the server, which shares a small machine with the run."""

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the exit code: 130 when stopped, an error's own otherwise."""
    parser = argparse.ArgumentParser(prog="dpo-data deploy", description=__doc__)
    parser.add_argument("--port", type=int, help="the port on 127.0.0.1 (default: PREFECT_API_URL, or else 4200)")
    given = parser.parse_args(argv)
    url = f"http://127.0.0.1:{given.port or 4200}/api" if given.port else PREFECT_API_URL.value() or "http://127.0.0.1:4200/api"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _serve(url)
    except DpoDataError as error:
        print(f"dpo-data deploy: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndpo-data deploy: stopped. Schedules and finished work are kept; go on with `dpo-data deploy`", file=sys.stderr)
        return 130


def deployments(folder: Path = SHIPPED) -> dict[str, Any]:
    """prefect.yaml with absolute entrypoints, so that it can be deployed from any folder, an installed package included."""
    table: dict[str, Any] = yaml.safe_load((folder / "prefect.yaml").read_text(encoding="utf-8"))
    for one in table["deployments"]:
        one["entrypoint"] = str(folder / one["entrypoint"])
    return table


def _serve(url: str) -> int:
    os.environ["PREFECT_API_URL"] = url
    with nullcontext() if _get(url, "/health") else _server(url):
        if not _get(url, f"/work_pools/{POOL}"):
            _prefect("work-pool", "create", POOL, "--type", "process")
        _deploy(url)
        with _process([*PREFECT, "worker", "start", "--pool", POOL, "--type", "process"]) as worker:
            print(f"Prefect: {url.removesuffix('/api')}", "Run now: prefect deployment run sample-and-train/nightly", sep="\n")
            print("  or, to have people rank: prefect deployment run curate/push")
            print(f"  (in another terminal: export PREFECT_API_URL={url})", "Ctrl-C ends it.", sep="\n", flush=True)
            code = worker.wait()
    raise DpoDataError(f"The worker ended with exit code {code}", "Its reason stands above.")


def _deploy(url: str) -> None:
    """All deployments of prefect.yaml. Prefect skips what it does not understand and calls it success, so look: at each, and at
    the automation of each of its triggers."""
    table = deployments()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(table, file)
        file.flush()
        said = _prefect("deploy", "--all", "--prefect-file", file.name)
    for one in table["deployments"]:
        name = full_name(one)
        found = _get(url, f"/deployments/name/{name}")
        if not found:
            raise DpoDataError(f"The deployment {name} is not on the server: {said}", "Mend prefect.yaml.")
        automations = _get(url, f"/automations/related-to/prefect.deployment.{found['id']}") or []
        for trigger in one.get("triggers", []):
            if trigger["name"] not in [automation["name"] for automation in automations]:
                raise DpoDataError(f"The trigger {trigger['name']!r} of {name} is not on the server", "Mend prefect.yaml.")


def full_name(deployment: dict[str, Any]) -> str:
    """A deployment's name after its flow's, as Prefect's commands want it. A flow is named as its file."""
    file = Path(deployment["entrypoint"].partition(":")[0])
    return f"{file.stem.replace('_', '-')}/{deployment['name']}"


@contextmanager
def _server(url: str) -> Iterator[None]:
    """A Prefect server for as long as the block runs, on this machine only."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    if host not in LOOPBACK:
        raise DpoDataError(
            f"No Prefect server answers at {url}", "Start it, or unset PREFECT_API_URL to have one started here."
        )
    os.environ["PREFECT_SERVER_UI_API_URL"] = url
    log = PREFECT_HOME.value() / "dpo-data-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"]
        with _process(command, stdout=out, stderr=out) as server:
            while not _get(url, "/health"):
                if server.poll() is not None:
                    raise DpoDataError(f"The Prefect server ended: {_last_line(log.read_text())}", f"Its whole log is {log}.")
                time.sleep(0.2)
            _end_dead_runs(url)
            try:
                yield
            finally:
                _end_dead_runs(url)


def _end_dead_runs(url: str) -> None:
    """Tell the server of flow runs whose process is gone: killed with the worker, or by a power cut.

    To Prefect they would run for good and hold the deployment's only place, for it forgets the holders when the server ends.
    """
    unfinished = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    state = {"type": "CRASHED", "message": "Its process is gone. A new run on the same run directory goes on from there."}
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        found = client.post("/flow_runs/filter", json={"flow_runs": unfinished, "work_pools": {"name": {"any_": [POOL]}}})
        for run in found.raise_for_status().json():
            if not _is_alive(run["infrastructure_pid"]):
                client.post(f"/flow_runs/{run['id']}/set_state", json={"state": state, "force": True}).raise_for_status()


def _is_alive(pid: str | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child that ends with the block, and all that it started with it.

    Its own process group keeps the terminal's Ctrl-C from it: the worker has to end before its server does. It then gets that
    Ctrl-C as a group, so a flow run in progress hears of it too and tells the server that it ended.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
            until = time.monotonic() + 10
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _prefect(*arguments: str) -> str:
    """Run one Prefect command. Returns the last line that it said; raises DpoDataError with it."""
    done = subprocess.run([*PREFECT, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    said = _last_line(done.stdout + done.stderr)
    if done.returncode:
        raise DpoDataError(f"`prefect {' '.join(arguments)}` failed: {said}", "Mend the cause and run `dpo-data deploy` again.")
    return said


def _get(url: str, path: str) -> Any:
    """What the server answers, as JSON; None where it does not answer, or refuses. One that is busy is asked again."""
    until = time.monotonic() + TIMEOUT
    try:
        while (answer := httpx.get(url + path, timeout=TIMEOUT)).status_code == 503 and time.monotonic() < until:
            time.sleep(0.5)
    except httpx.TransportError:
        return None
    return answer.json() if answer.is_success else None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
