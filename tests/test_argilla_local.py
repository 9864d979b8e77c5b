"""An Argilla on this machine: it is installed, started, found again, killed and ended, and nothing is left over."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from argilla_server import LocalArgilla, answer, log_records, open_for_answers, serving

from dpo_data import cli
from dpo_data.argilla import environment, local
from dpo_data.argilla.access import Access, access, credentials
from dpo_data.errors import ArgillaError

pytestmark = pytest.mark.slow
KEYS = ("ARGILLA_API_URL", "ARGILLA_API_KEY")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose server has run and is down: it has a database."""
    home = tmp_path_factory.mktemp("made") / "home"
    with serving(home):
        pass
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it. Whatever still runs there is ended."""
    copy = Path(shutil.copytree(made, tmp_path / "home"))
    yield copy
    for process in servers(copy):
        process.kill()


def servers(home: Path) -> list[psutil.Process]:
    """The processes that run in this folder's name, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(home / "tmp") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def until(fact: Callable[[], Any]) -> None:
    """Wait until something holds; the test's time limit ends a wait in vain."""
    while not fact():
        time.sleep(0.05)


def ask(known: Access, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{known.url}/api/v1/{path}", headers=headers or {"X-Argilla-Api-Key": known.key}, trust_env=False)


def begin(home: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    """`dpo-data argilla up` in a process and a session of its own."""
    command = [sys.executable, "-m", "dpo_data.cli", "argilla", "up", "--home", str(home), "--port", "0", *more]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    return subprocess.Popen(command, env={**os.environ, **env}, **quiet)  # type: ignore[call-overload, no-any-return]


# ---- who is asked, and with which key -------------------------------------------------------------------------------------


def test_the_environment_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ArgillaError, match="Start one on this machine with `dpo-data argilla up`, or set ARGILLA_API_URL and ARG"
    ):
        access(tmp_path)
    known = {"api_url": "http://127.0.0.1:6900", "username": "argilla", "password": "p", "api_key": "k", "users": {}}
    (tmp_path / "credentials.json").write_text(json.dumps(known))
    assert access(tmp_path) == Access("http://127.0.0.1:6900", "k")
    monkeypatch.setenv("ARGILLA_API_URL", "https://argilla.example.org/")
    with pytest.raises(ArgillaError, match="ARGILLA_API_URL is set and ARGILLA_API_KEY is not"):
        access(tmp_path)
    monkeypatch.setenv("ARGILLA_API_KEY", "theirs")
    assert access(tmp_path) == Access("https://argilla.example.org", "theirs")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"api_url": "u"}', '{"users": 1}'])
def test_credentials_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "credentials.json").write_text(text)
    with pytest.raises(ArgillaError, match=r"credentials.json cannot be read: .*\. Restore it"):
        credentials(tmp_path)


# ---- the environment of the server ----------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Lets the environment be made from an empty package that calls itself argilla-server of some version."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def make(version: str) -> Path:
        name = f"argilla_server-{version}"
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: argilla-server\nVersion: {version}\n")
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}.dist-info/RECORD", "")
        (tmp_path / "requirements.txt").write_text(f"argilla-server=={version}\n")
        monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
        return environment.where()

    return make


MAKE = """
import sys
from pathlib import Path
from dpo_data.argilla import environment
environment.REQUIREMENTS = Path(sys.argv[1])
print(environment.environment())
"""


def making(requirements: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen([sys.executable, "-c", MAKE, str(requirements)], **pipes)  # type: ignore[call-overload, no-any-return]


def at_work(folder: Path) -> list[int]:
    """The processes that make an environment."""
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])]


def test_an_install_that_was_killed_is_redone_and_two_at_once_make_one(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny("2.8.0")
    for kind in (signal.SIGINT, signal.SIGKILL):
        first = making(tmp_path / "requirements.txt")
        until((folder / "pyvenv.cfg").exists)
        first.send_signal(kind)
        first.communicate()
        until(lambda: not at_work(folder))
        assert not environment.is_made()
        shutil.rmtree(folder) if kind == signal.SIGINT else (folder / "half-made").touch()
    two = [making(tmp_path / "requirements.txt") for _ in range(2)]
    assert {one.communicate()[0].strip() for one in two} == {str(folder / "bin" / "python")}
    assert environment.is_made() and not (folder / "half-made").exists()
    stamp = (folder / "complete").stat().st_mtime_ns
    assert environment.environment() == folder / "bin" / "python" and (folder / "complete").stat().st_mtime_ns == stamp


def test_what_lies_on_the_pythonpath_is_not_taken_for_installed(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("2.8.0")
    about = tmp_path / "elsewhere" / "argilla_server-2.8.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: argilla-server\nVersion: 2.8.0\n")
    monkeypatch.setenv("PYTHONPATH", str(about.parent))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    assert environment.environment() == folder / "bin" / "python"
    assert list(folder.glob("lib/*/site-packages/argilla_server-2.8.0.dist-info"))


def test_a_home_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for ask in (local.running, local.down, lambda home: local.up(home, 0)):
        with pytest.raises(ArgillaError, match="file"):
            ask(tmp_path / "file")


def test_another_version_of_the_server_is_refused(tiny: Callable[[str], Path]) -> None:
    folder = tiny("2.7.1")
    for _ in range(2):
        with pytest.raises(ArgillaError, match=rf"{folder} holds argilla-server 2\.7\.1, not 2\.8\.0. Delete that folder"):
            environment.environment()


def test_a_failed_install_is_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    tiny("2.8.0")
    (tmp_path / "requirements.txt").write_text("no-such-package==1.0\n")
    with pytest.raises(ArgillaError) as failed:
        environment.environment()
    assert re.search(
        r"cannot be made at .*: ERROR: No matching distribution found for no-such-package==1\.0. Check", str(failed.value)
    )
    assert len(str(failed.value).splitlines()) == 1 and not environment.is_made()


def test_a_python_that_the_server_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PYTHONS", ((3, 9),))
    with pytest.raises(
        ArgillaError, match=r"does not run on Python 3\.1\d. Install dpo-data for Python 3\.9, or set ARGILLA_API_URL"
    ):
        environment.environment()


# ---- the life of a server -------------------------------------------------------------------------------------------------


def test_from_the_first_start_to_the_end(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"

    def say(*argv: str, code: int = 0) -> str:
        assert cli.main(["argilla", *argv, "--home", str(home)]) == code
        return capsys.readouterr().out

    assert say("status", code=1) == say("down") == f"No server of {home} runs\n"
    first = say("up", "--port", "0")
    known = json.loads((home / "credentials.json").read_text())
    try:
        assert all(known[part] in first for part in ("api_url", "username", "password", "api_key"))
        again = say("up", "--port", "0")
        assert again.startswith(f"Argilla runs already at {known['api_url']}") and known["password"] not in again
        assert known["api_url"] in say("status")
        (one,) = servers(home)
        assert os.getsid(one.pid) == one.pid, "the terminal's end is not its own"
        assert {(at.laddr.ip, at.status) for at in one.net_connections()} == {("127.0.0.1", "LISTEN")}
        for private in ("credentials.json", "secret", "argilla.db"):
            assert stat.S_IMODE((home / private).stat().st_mode) == 0o600
        with sqlite3.connect(home / "argilla.db") as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        told = say("user", "add", "anna")
        assert told == say("user", "add", "anna"), "who is known keeps the password"
        anna = json.loads((home / "credentials.json").read_text())["users"]["anna"]
        assert f"password {anna['password']}" in told
        me = ask(Access(known["api_url"], anna["api_key"]), "me").json()
        assert (me["username"], me["role"]) == ("anna", "annotator")
        assert [one["name"] for one in ask(Access(known["api_url"], anna["api_key"]), "me/workspaces").json()["items"]] == [
            "dpo-data"
        ]
    finally:
        assert say("down") == "Stopped\n"
    assert not servers(home) and not list((home / "tmp").iterdir())
    assert cli.main(["argilla", "user", "add", "bob", "--home", str(home)]) == 4


def test_sessions_and_data_survive_a_restart_and_a_kill(home: Path) -> None:
    known = local.up(home, 0)
    username, password, _ = local.owner(home)
    signed_in = httpx.post(
        f"{known.url}/api/v1/token", data={"username": username, "password": password}, trust_env=False
    ).json()
    bearer = {"Authorization": f"Bearer {signed_in['access_token']}"}
    local.add_user(home, "anna")
    assert local.down(home) and not local.down(home)
    known = local.up(home, 0)
    assert ask(known, "me", **bearer).json()["username"] == username
    (killed,) = servers(home)
    killed.kill()
    killed.wait()
    assert local.running(home) is None and not local.down(home)
    (left,) = (home / "tmp").glob("ui-*")
    known = local.up(home, 0)
    assert not left.exists() and len(list((home / "tmp").glob("ui-*"))) == 1
    assert {one["username"] for one in ask(known, "users").json()["items"]} == {username, "anna"}
    assert ask(known, "me", **bearer).json()["username"] == username


def test_what_runs_is_known_by_its_lock(home: Path) -> None:
    """A process that has got the number of a server that is dead is left alone."""
    with subprocess.Popen(["sleep", "600"]) as other:
        (home / "lock").write_text(json.dumps({"pid": other.pid, "url": "http://127.0.0.1:1"}))
        assert local.running(home) is None and not local.down(home)
        known = local.up(home, 0)
        assert local.running(home) == known.url != "http://127.0.0.1:1"
        assert local.down(home) and other.poll() is None
        other.kill()


def test_starts_at_once_start_one(home: Path) -> None:
    three = [begin(home) for _ in range(3)]
    told = [one.communicate()[0] for one in three]
    assert [one.returncode for one in three] == [0, 0, 0]
    assert len({re.search(r"http://127\S+\d", text)[0] for text in told}) == 1 and len(servers(home)) == 1  # type: ignore[index]


def test_a_port_that_is_taken(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ArgillaError, match=rf"Port {port} cannot be had: .* Name another with --port"):
            local.up(home, port)
    assert not servers(home) and local.running(home) is None
    assert local.up(home, port).url.endswith(f":{port}")


def test_a_database_of_another_server_is_refused(home: Path) -> None:
    with sqlite3.connect(home / "argilla.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '45a12f74448b'")
    with pytest.raises(ArgillaError, match=r"argilla.db is not of argilla-server 2\.8\.0: its tables are 45a12f74448b, not"):
        local.up(home, 0)
    (home / "argilla.db").write_text("no database at all, and long enough to be taken for one" * 9)
    with pytest.raises(ArgillaError, match="its tables are file is not a database"):
        local.up(home, 0)
    assert not servers(home)


def test_lost_credentials(home: Path) -> None:
    (home / "credentials.json").unlink()
    with pytest.raises(ArgillaError, match=r"holds a database and no credentials.json. Restore it"):
        local.up(home, 0)


def test_a_database_that_was_never_searched_is_indexed(home: Path) -> None:
    """That of an Argilla which had Elasticsearch."""
    with serving(home) as server:
        server.user("anna")
        dataset = open_for_answers(server)
        log_records(server, dataset, 3, 100)
    with sqlite3.connect(home / "argilla.db") as database:
        for kind, name in database.execute("SELECT type, name FROM sqlite_master WHERE name LIKE 'record%_text%'").fetchall():
            if kind == "trigger" or name in ("record_texts", "record_words"):
                database.execute(f"DROP {kind} IF EXISTS {name}")
        database.execute("DROP TABLE record_words")
    for _ in range(2):
        with serving(home) as server:
            found = server.ask("POST", f"datasets/{dataset}/records/search", json={"query": {"text": {"q": "ANSWER"}}})
            assert found["total"] == 3


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL], ids=lambda kind: kind.name)
def test_a_start_that_is_broken_off_leaves_nothing(home: Path, kind: signal.Signals) -> None:
    with begin(home) as start:
        until(lambda: servers(home))
        start.send_signal(kind)
        start.wait()
    until(lambda: not servers(home))
    assert local.running(home) is None
    assert ask(local.up(home, 0), "me").is_success


def test_a_first_start_that_is_broken_off_is_begun_anew(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with begin(home) as start:
        until((home / "making" / "argilla.db").exists)
        start.kill()
    known = local.up(home, 0)
    try:
        assert ask(known, "me").json()["username"] == local.owner(home)[0]
        assert not (home / "making").exists()
    finally:
        local.down(home)


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    with sqlite3.connect(home / "argilla.db") as database:
        database.execute("DROP TABLE users")
    with pytest.raises(ArgillaError, match=r"The server does not start: .*no such table: users.*server.log"):
        local.up(home, 0)
    assert not servers(home) and local.running(home) is None


@contextmanager
def trap() -> Iterator[tuple[str, list[Any]]]:
    """A proxy that lets nobody through: its address, and who tried."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tried: list[Any] = []

        def wait() -> None:
            with suppress(OSError):
                while True:
                    one, whence = listening.accept()
                    tried.append(whence)
                    one.close()

        threading.Thread(target=wait, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", tried


def test_nothing_is_asked_of_the_network_and_the_callers_settings_do_not_reach_the_server(home: Path) -> None:
    with trap() as (proxy, tried):
        proxies = {name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")}
        theirs = {"ARGILLA_DATABASE_URL": "sqlite:////nowhere/at.db", "ARGILLA_BASE_URL": "/elsewhere", "PYTHONHOME": ""}
        start = begin(home, **proxies, **theirs, no_proxy="")
        told = start.communicate()
        assert start.returncode == 0, told
        known = Access(str(local.running(home)), local.owner(home)[2])
        for path in ("me", "settings", "version", "status"):
            assert ask(known, path).is_success
        page = httpx.get(f"{known.url}/sign-in", trust_env=False, follow_redirects=True)
        assert page.is_success and "<title>Argilla</title>" in page.text
        sheets = "".join(path.read_text() for path in (home / "tmp").rglob("*.css"))
        assert "font-family" in sheets and "//fonts." not in sheets, "nor has the UI anything to ask"
        assert local.down(home)
        with suppress(httpx.HTTPError):
            httpx.get("http://nobody.example.org", proxy=proxy)
        until(lambda: len(tried) == 1)  # this last one alone


# ---- many at once ---------------------------------------------------------------------------------------------------------

RECORDS, SIZE = 600, 2_000
"""How many records are logged while people answer, and of how many characters. benchmarks/annotate.py logs 5,000."""


def test_three_people_answer_while_records_are_logged(argilla: LocalArgilla) -> None:
    people = ["dora", "emil", "fred"]
    keys = {name: argilla.user(name)[1] for name in people}
    dataset = open_for_answers(argilla)
    stop, answered = threading.Event(), {name: list[str]() for name in people}
    with ThreadPoolExecutor() as pool:
        logging = pool.submit(log_records, argilla, dataset, RECORDS, SIZE)
        working = [pool.submit(answer, argilla, dataset, keys[name], stop, answered[name]) for name in people]
        assert logging.result() == RECORDS
        assert any(answered.values()), "nobody answered while records were logged"
        until(lambda: all(len(ids) > 3 for ids in answered.values()) or any(one.done() for one in working))
        stop.set()
        for one in working:
            one.result()
    listed = argilla.ask("GET", f"datasets/{dataset}/records", params={"limit": 1000, "include": "responses"})["items"]
    assert sorted(one["external_id"] for one in listed) == sorted(map(str, range(RECORDS)))
    ids = {one["username"]: one["id"] for one in argilla.ask("GET", "users")["items"]}
    for name in people:
        kept = [one["id"] for one in listed for said in one["responses"] if said["user_id"] == ids[name]]
        assert sorted(kept) == sorted(answered[name]) and len(kept) > 3
    assert "locked" not in (argilla.home / "server.log").read_text()
