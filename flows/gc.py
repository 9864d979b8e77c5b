"""What `dpo-data gc` does on the Prefect server: flow runs whose process is gone are told to it as Crashed."""

import os
import socket
import sys
import time
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import UUID

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from dpo_data.child import environment

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
    url = signed_in(PREFECT_API_URL.value() or URL)
    try:
        dead = end_dead_runs(url, act=yes)
    except httpx.HTTPError as error:
        print(f"flow runs: not looked at, for {why(error, url)}")
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
    server is told that they crashed. `unclaimed`: also those that had not begun, unless another machine's worker may be about
    to begin them; that this one's is not is taken for granted.

    To Prefect they would run for good, and hold the deployment's only place.
    """
    asked = {"flow_runs": {"state": {"type": {"any_": UNFINISHED}}}, "work_pools": {"name": {"any_": [POOL]}}}
    with httpx.Client(base_url=url, timeout=TIMEOUT, headers=credentials()) as client:
        unclaimed = unclaimed and not _others(client)
        found = _post(client, "/flow_runs/filter", asked).raise_for_status().json()
        dead = [run for run in found if _is_ours(run, unclaimed) and not _is_alive(run)]
        for run in dead if act else []:
            _post(client, f"/flow_runs/{run['id']}/set_state", {"state": CRASHED, "force": True}).raise_for_status()
    return dead


def signed_in(url: str) -> str:
    """An address without the user and password in it, which Prefect is given by the setting for that instead: it, and we, show
    addresses."""
    place = urlsplit(url)
    who, at, host = place.netloc.rpartition("@")
    if not at:
        return url
    os.environ.setdefault("PREFECT_API_AUTH_STRING", unquote(who))
    os.environ["PREFECT_API_URL"] = plain = urlunsplit(place._replace(netloc=host))
    refresh_global_settings_context()
    return plain


def credentials() -> dict[str, str]:
    """The header with which Prefect's own client would sign in; none where the settings have no key or password."""
    key, password = PREFECT_API_KEY.value(), PREFECT_API_AUTH_STRING.value()
    if password:
        return {"Authorization": f"Basic {b64encode(password.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


def _others(client: httpx.Client) -> list[str]:
    """The workers of other machines that take work of the pool, by their names, which are their machines'."""
    online = {"workers": {"status": {"any_": ["ONLINE"]}}}
    answer = _post(client, f"/work_pools/{POOL}/workers/filter", online)
    found = [] if answer.status_code == 404 else answer.raise_for_status().json()  # a new server has no pool yet
    return [one["name"] for one in found if one["name"] != socket.gethostname()]


def _post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """What the server answers. One that is busy is asked again, as Prefect's own client does."""
    until = time.monotonic() + TIMEOUT
    while (answer := client.post(path, json=body)).status_code == 503 and time.monotonic() < until:
        time.sleep(0.2)
    return answer


def why(error: httpx.HTTPError, url: str) -> str:
    """Why a server did not do as it was asked. An error's own words may quote more of an address than is shown."""
    if not isinstance(error, httpx.HTTPStatusError):
        return f"no Prefect server answers at {url}"
    if error.response.status_code in (401, 403):
        return f"the server at {url} refuses: set PREFECT_API_AUTH_STRING"
    return f"the server at {url} answers {error.response.status_code}: run this again"


def _is_ours(run: dict[str, Any], unclaimed: bool) -> bool:
    host = (run["labels"] or {}).get(HOST)
    return unclaimed if host is None else bool(host == socket.gethostname())


def _is_alive(run: dict[str, Any]) -> bool:
    """Whether the process has that id and that flow run: an id alone may be somebody else's by now."""
    if run["infrastructure_pid"] is None:
        return False
    try:
        variables = environment(run["infrastructure_pid"]).split(b"\0")
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"PREFECT__FLOW_RUN_ID={run['id']}".encode() in variables


if __name__ == "__main__":
    sys.exit(main())
