"""An Argilla on this machine: the real server with its web UI, its database in a folder, and nothing to install by hand.

argilla-data/  credentials.json  argilla.db  secret  server.log  lock  tmp/

The server is a process of its own, which outlives the terminal. It holds `lock` as long as it lives; who and where it is stands
in there. So nobody takes another process for it, which got its number after its death.
"""

import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dpo_data.argilla.access import Access, credentials, write_private
from dpo_data.argilla.client import Client
from dpo_data.argilla.dataset import open_workspace
from dpo_data.argilla.environment import VERSION, environment
from dpo_data.argilla.lock import only_one, who
from dpo_data.argilla.team import gather
from dpo_data.errors import ArgillaError

OWNER = "argilla"
REVISION = "580a6553186f"
"""What alembic calls the tables of this version of the server."""
PATIENCE = 120.0
"""Seconds that the server has to start: it takes five to fifteen."""


def up(home: Path, port: int = 6900) -> Access:
    """Start the server, unless it runs already, and wait until it answers. Only this machine reaches it. Port 0 is a free one.
    Raises ArgillaError."""
    try:
        return _up(home.resolve(), port)
    except OSError as error:
        raise ArgillaError(f"The server cannot be started: {error}", "Mend that, or name another folder with --home.") from None


def _up(home: Path, port: int) -> Access:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(home / "lock") as lock:
        if lock is None:
            known = _known(home)
            return Access(known["api_url"], known["api_key"])
        with _listening(port) as listening:
            python = environment()
            _clear(home)
            known = _made(home, python, lock)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            _write(home, {**known, "api_url": url})
            _start(home, python, lock, listening)
        return Access(url, known["api_key"])


def down(home: Path) -> bool:
    """End the server and wait for its end. False where none runs."""
    server = who(home / "lock")
    if server is None:
        return False
    for kind, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(server["pid"], kind)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if who(home / "lock") != server:
                return True
            time.sleep(0.05)
    raise ArgillaError(
        f"The server of {home}, process {server['pid']}, does not end", f"End it by hand with `kill -9 {server['pid']}`."
    )


def running(home: Path) -> str | None:
    """The server's URL; None where none runs."""
    server = who(home / "lock")
    return str(server["url"]) if server else None


def add_user(home: Path, name: str, workspace: str = "dpo-data") -> str:
    """Give somebody an annotator's account, and a place in the workspace, which is made where it is missing. Returns the
    password: the old one, where the name is known. Raises ArgillaError."""
    url = running(home)
    if url is None:
        raise ArgillaError(f"No server of {home} runs", "Start it with `dpo-data argilla up`.")
    client = Client(Access(url, _known(home)["api_key"]))
    try:
        gather(client, open_workspace(client, workspace), [name], home)
    finally:
        client.close()
    user = _known(home)["users"].get(name)
    if user is None:
        raise ArgillaError(f"{name} has an account already, whose password is not in {home}", "Name another.")
    return str(user["password"])


def owner(home: Path) -> tuple[str, str, str]:
    """The owner's name, password and API key. Raises ArgillaError."""
    known = _known(home)
    return known["username"], known["password"], known["api_key"]


def _known(home: Path) -> dict[str, Any]:
    known = credentials(home)
    if known is None:
        raise ArgillaError(
            f"{home} holds a database and no credentials.json", "Restore it, or name another folder with --home."
        )
    return known


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket for the server, bound before anything else is done: its port is taken, or it is ours."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
            one.listen()
        except (OSError, OverflowError) as error:
            raise ArgillaError(
                f"Port {port} cannot be had: {error}", "Name another with --port, or end the program that listens there."
            ) from None
        yield one


def _clear(home: Path) -> None:
    """What a server or a start that was killed has left: each server copies its UI, of 14 MB, to its temporary files."""
    shutil.rmtree(home / "tmp", ignore_errors=True)
    (home / "tmp").mkdir(mode=0o700)
    shutil.rmtree(home / "making", ignore_errors=True)


def _made(home: Path, python: Path, lock: IO[str]) -> dict[str, Any]:
    """The credentials, with the database to which they belong; both are made where there is no database. It appears whole."""
    database = home / "argilla.db"
    if database.exists():
        _check(database)
        return _known(home)
    known = credentials(home)
    if known is None or known["users"]:  # those of a database that is gone
        if known:
            os.replace(home / "credentials.json", home / f"credentials.{time.time_ns()}.json")
        known = {"username": OWNER, "password": secrets.token_urlsafe(12), "api_key": secrets.token_urlsafe(24), "users": {}}
    making = home / "making"
    making.mkdir(mode=0o700)
    owner = json.dumps({key: known[key] for key in ("username", "password", "api_key")})
    with (home / "server.log").open("a") as log:
        begun = log.tell()
        made = subprocess.run(
            [str(python), "-m", "server", "make"],
            input=owner,
            text=True,
            stdout=log,
            stderr=log,
            cwd=home,
            env=_environ(home, making),
            pass_fds=(lock.fileno(),),
            umask=0o077,
            check=False,
        )
    if made.returncode:
        raise _failed(home, "The database cannot be made", begun)
    _write(home, {"api_url": "", **known})
    os.replace(making / "argilla.db", database)
    shutil.rmtree(making)
    return known


def _check(database: Path) -> None:
    """That it is a database of this version of the server. Raises ArgillaError."""
    try:
        with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as connection:
            found = [revision for (revision,) in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    if found != [REVISION]:
        raise ArgillaError(
            f"{database} is not of argilla-server {VERSION}: its tables are {', '.join(found)}, not {REVISION}",
            "Use the server that made it, with ARGILLA_API_URL and ARGILLA_API_KEY, or name another folder with --home.",
        )


def _start(home: Path, python: Path, lock: IO[str], listening: socket.socket) -> None:
    """Start the server in a session of its own. It inherits the lock, and ends where this process dies before it answers."""
    ready, its_ready = os.pipe()
    with (home / "server.log").open("a") as log, os.fdopen(ready) as told:
        begun, fds = log.tell(), (listening.fileno(), its_ready, lock.fileno())
        process = subprocess.Popen(
            [str(python), "-m", "server", "serve", *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=_environ(home, home),
            pass_fds=fds,
            umask=0o077,
            start_new_session=True,
        )
        os.close(its_ready)
        try:
            if not _heard(told):
                raise _failed(home, "The server does not start", begun)
        except BaseException:
            process.kill()
            process.wait()
            raise


def _heard(told: IO[str]) -> bool:
    """Whether the server said that it answers, before it ended or its time was up."""
    return bool(select.select([told], [], [], PATIENCE)[0]) and told.readline() == "ready\n"


def _environ(home: Path, data: Path) -> dict[str, str]:
    """The server's environment: nothing of ours that would change what it does, and nothing that asks the network."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("ARGILLA_", "PYTHON", "HF_", "OAUTH2_"))}
    return {
        **ours,
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(home / "tmp"),
        "ARGILLA_HOME_PATH": str(data),
        "ARGILLA_AUTH_SECRET_KEY": _secret(home),
        "ARGILLA_SEARCH_ENGINE": "sqlite",
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": "60",
        "ARGILLA_ENABLE_SHARE_YOUR_PROGRESS": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _secret(home: Path) -> str:
    """What the server signs sessions with: kept, so that nobody has to sign in again after a restart."""
    path = home / "secret"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32))
    return path.read_text()


def _write(home: Path, known: dict[str, Any]) -> None:
    write_private(home / "credentials.json", json.dumps(known, indent=2) + "\n")


def _failed(home: Path, what: str, begun: int) -> ArgillaError:
    """An error with the last exception that the log has from this byte on, or else its last line."""
    lines = (home / "server.log").read_bytes()[begun:].decode(errors="replace").split("\n")
    said = [line for line in lines if re.match(r"[\w.()]*(Error|Exception)\b.*: ", line)] or [
        line for line in lines if line.strip()
    ]
    return ArgillaError(f"{what}: {said[-1] if said else 'it says nothing'}", f"The whole log is {home}/server.log.")
