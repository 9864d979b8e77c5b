"""What `dpo-data gc` does on the Prefect server: flow runs whose process is gone are told to it as Crashed."""

import os
import socket
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any
from uuid import UUID

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

POOL = "dpo-data"
URL = "http://127.0.0.1:4200/api"
"""Where `dpo-data deploy` serves, unless PREFECT_API_URL says otherwise."""

TIMEOUT = 30
"""Seconds for one answer of the server, which shares a small machine with the run."""

HOST = "dpo-data.host"
"""The label of a flow run that names the machine of its process. A process id means nothing on another one."""

UNFINISHED = ["PENDING", "RUNNING", "CANCELLING"]
CRASHED = {"type": "CRASHED", "message": "Its process is gone. A new run on the same run directory goes on from there."}


def main(argv: list[str] | None = None) -> int:
    """Say which flow runs of this machine are dead, and with `--yes` tell the server. Returns 0."""
    yes = "--yes" in (sys.argv[1:] if argv is None else argv)
    url = PREFECT_API_URL.value() or URL
    try:
        dead = end_dead_runs(url, act=yes)
    except httpx.HTTPError as error:
        refused = isinstance(error, httpx.HTTPStatusError)
        why = f"the server at {url} refuses: set PREFECT_API_AUTH_STRING" if refused else f"no Prefect server answers at {url}"
        print(f"flow runs: not looked at, for {why}")
        return 0
    for run in dead:
        print(f"  {'crashed' if yes else 'dead':<7} {run['name']}, {run['state_name']} since {run['start_time']}")
    said = "are now Crashed" if yes else "would be Crashed with --yes"
    print(f"flow runs: {len(dead)} whose process on this machine is gone{f' {said}' if dead else ''}")
    return 0


def claim() -> None:
    """Write on the flow run that is under way which machine its process is on, so that nobody elsewhere takes it for dead."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(runtime.flow_run.id), {HOST: socket.gethostname()})


def end_dead_runs(url: str, act: bool = True, unclaimed: bool = False) -> list[dict[str, Any]]:
    """The flow runs of this machine whose process is gone: killed with the worker, or by a power cut. Where it is to `act`, the
    server is told that they crashed. `unclaimed`: also those that had not begun, which takes for granted that no worker is
    about to begin them.

    To Prefect they would run for good, and hold the deployment's only place.
    """
    asked = {"flow_runs": {"state": {"type": {"any_": UNFINISHED}}}, "work_pools": {"name": {"any_": [POOL]}}}
    with httpx.Client(base_url=url, timeout=TIMEOUT, headers=credentials()) as client:
        found = client.post("/flow_runs/filter", json=asked).raise_for_status().json()
        dead = [run for run in found if _is_ours(run, unclaimed) and not _is_alive(run)]
        for run in dead if act else []:
            client.post(f"/flow_runs/{run['id']}/set_state", json={"state": CRASHED, "force": True}).raise_for_status()
    return dead


def credentials() -> dict[str, str]:
    """The header with which Prefect's own client would sign in; none where the settings have no key or password."""
    key, password = PREFECT_API_KEY.value(), PREFECT_API_AUTH_STRING.value()
    if password:
        return {"Authorization": f"Basic {b64encode(password.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


def _is_ours(run: dict[str, Any], unclaimed: bool) -> bool:
    host = (run["labels"] or {}).get(HOST)
    return unclaimed if host is None else bool(host == socket.gethostname())


def _is_alive(run: dict[str, Any]) -> bool:
    """Whether the process has that id and that flow run: an id alone may be somebody else's by now."""
    if run["infrastructure_pid"] is None:
        return False
    try:
        variables = Path(f"/proc/{run['infrastructure_pid']}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"PREFECT__FLOW_RUN_ID={run['id']}".encode() in variables


if __name__ == "__main__":
    sys.exit(main())
