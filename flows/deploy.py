"""What `dpo-data deploy` runs: a Prefect server where none answers, the deployments of prefect.yaml, a worker until Ctrl-C."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from dpo_data.share import SHIPPED

sys.path.insert(0, str(SHIPPED))  # run by its path, this file would not find its neighbours

import httpx
import yaml
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL as DATABASE

from dpo_data.errors import DpoDataError
from dpo_data.stop import listen, obeyed, over
from flows import gpu, server
from flows.gc import POOL, TIMEOUT, URL, credentials, end_dead_runs, signed_in, why

LOOPBACK = ("127.0.0.1", "localhost")

WORKER = {
    # A flow run's process starts as many seconds early and waits for its time, so that its imports delay nothing, nor does a
    # server that was busy when the worker asked it: Prefect's client waits up to a minute before it has asked five times.
    "PREFECT_WORKER_PREFETCH_SECONDS": "75",
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
}
"""Settings of Prefect's for what is started here, unless the environment has its own."""

BESIDE = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
"""More of them, for a worker whose server is started here, on SQLite. What is asked for now, or had its schedule made right
before its minute, has no time to spare. Elsewhere it is ten seconds, as Prefect has it: a worker ends itself after twelve
errors in a row, and a database that is started anew, or a server behind a proxy, may well be away for twelve seconds."""

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the exit code: 130 when stopped, an error's own otherwise."""
    parser = argparse.ArgumentParser(prog="dpo-data deploy", description=__doc__)
    parser.add_argument("--port", type=int, help="the port on 127.0.0.1 (default: PREFECT_API_URL, or else 4200)")
    parser.add_argument("--with-healthcheck", action="store_true", help="have the worker answer at /health, on port 8080")
    given = parser.parse_args(argv)
    url = f"http://127.0.0.1:{given.port}/api" if given.port else signed_in(PREFECT_API_URL.value() or URL)
    listen()
    try:
        return _serve(url, given.with_healthcheck)
    except BaseException as error:
        if obeyed(error):
            print(
                "\ndpo-data deploy: stopped. Schedules and finished work are kept; go on with `dpo-data deploy`",
                file=sys.stderr,
            )
            return 130
        if isinstance(error, DpoDataError):
            told, code = str(error), error.exit_code
        elif isinstance(error, httpx.HTTPError):
            told, code = why(error, url), 1
        else:
            raise
        print(f"dpo-data deploy: error: {told}", file=sys.stderr)
        return code
    finally:
        over()


def deployments(folder: Path = SHIPPED) -> dict[str, Any]:
    """prefect.yaml with absolute entrypoints, so that it can be deployed from any folder, an installed package included."""
    table: dict[str, Any] = yaml.safe_load((folder / "prefect.yaml").read_text(encoding="utf-8"))
    for one in table["deployments"]:
        one["entrypoint"] = str(folder / one["entrypoint"])
    return table


def _serve(url: str, healthcheck: bool) -> int:
    os.environ["PREFECT_API_URL"] = url
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # Prefect and its flow runs look for no modules in the working folder
    elsewhere = bool(_get(url, "/health"))
    beside = {} if elsewhere or "postgresql" in str(DATABASE.value()) else BESIDE
    with nullcontext() if elsewhere else _server(url):
        if not _get(url, f"/work_pools/{POOL}"):
            _prefect("work-pool", "create", POOL, "--type", "process")
        _limit(url)
        _deploy(url)
        end_dead_runs(url)
        command = [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process", "--name", socket.gethostname()]
        command += ["--with-healthcheck"] * healthcheck
        with _process(command, env={**WORKER, **beside, **os.environ}) as worker:
            print(f"Prefect: {url.removesuffix('/api')}", "Run now: prefect deployment run sample-and-train/nightly", sep="\n")
            print("  or, to have people rank: prefect deployment run curate/push")
            password = ", and PREFECT_API_AUTH_STRING as here" if PREFECT_API_AUTH_STRING.value() else ""
            print(f"  (in another terminal: export PREFECT_API_URL={url}{password})", "Ctrl-C ends it.", sep="\n", flush=True)
            code = worker.wait()
    raise DpoDataError(f"The worker ended with exit code {code}", "Its reason stands above.")


def _limit(url: str) -> None:
    """This machine's concurrency limit, unless the server has it already."""
    name, path = gpu.limit(), "/v2/concurrency_limits/"
    if name and not _get(url, path + name):
        body = {"name": name, "limit": gpu.slots()}
        httpx.post(url + path, json=body, headers=credentials(), timeout=TIMEOUT)
        if not _get(url, path + name):
            raise DpoDataError(
                f"The server makes no concurrency limit {name!r}", f"Make it: `prefect gcl create {name} --limit 1`."
            )


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
    command = [*server.COMMAND, "--port", str(port)]
    # Prefect's default would let any page in a browser of this machine start runs, and read what they are given and say.
    origins = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in LOOPBACK)}
    env = {**server.SETTINGS, **origins, **os.environ}
    with _process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        logger = threading.Thread(target=server.keep, args=(process, log), daemon=True)
        logger.start()
        while not _get(url, "/health"):
            if process.poll() is not None:
                logger.join()
                raise DpoDataError(f"The Prefect server ended: {_last_line(log.read_text())}", f"Its whole log is {log}.")
            time.sleep(0.2)
        end_dead_runs(url, unclaimed=True)
        try:
            yield
        finally:
            with suppress(httpx.HTTPError):  # a server that is going itself is not the reason for which this ends
                end_dead_runs(url, unclaimed=True)


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
        while (
            answer := httpx.get(url + path, headers=credentials(), timeout=TIMEOUT)
        ).status_code == 503 and time.monotonic() < until:
            time.sleep(0.5)
    except httpx.TransportError:
        return None
    return answer.json() if answer.is_success else None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word")


if __name__ == "__main__":
    sys.exit(main())
