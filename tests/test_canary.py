"""No key, token or password is where a run leaves anything: planted ones are looked for in every byte of it."""

import base64
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from argilla_server import LocalArgilla
from hub import TOKEN, HubServer

from dpo_data import cli
from dpo_data.argilla.access import Access
from dpo_data.argilla.client import Client
from dpo_data.argilla.lock import who
from dpo_data.config import Recipe, dump
from dpo_data.doctor.servers import shown
from dpo_data.errors import EngineError
from dpo_data.hub import page
from dpo_data.rundir import RunDir

ROOT = Path(__file__).parents[1]
Make = Callable[..., Recipe]

PLANTED = {
    "OPENAI_API_KEY": "sk-canary-of-the-judge-0001",
    "SAMPLER_KEY": "canary-of-the-sampler-0002",
    "PREFECT_API_KEY": "pnu_canaryOfPrefect0003",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0004",
    "AWS_SECRET_ACCESS_KEY": "canary/of+the/store0005",
    "WANDB_API_KEY": "canary0006" * 4,
    "ARGILLA_API_KEY": "canary-of-argilla-0007",
    "HF_TOKEN": TOKEN,
}
PASSWORDS = {
    "ARGILLA_API_URL": "http://somebody:canary-at-argilla-0008@127.0.0.1:9",
    "HTTPS_PROXY": "http://somebody:canary-at-the-proxy-0009@127.0.0.1:9",
}
"""Addresses with a password in them."""


def secrets(variables: dict[str, str]) -> dict[str, str]:
    """The secrets among these variables: their values, or the password in them."""
    return {name: value.partition("somebody:")[2].partition("@")[0] or value for name, value in variables.items()}


def found(secrets: dict[str, str], told: Iterator[tuple[str, bytes]]) -> list[str]:
    """Where which secret stands: as it is, in an address, in JSON, or in Basic authorization."""
    forms = {
        name: {
            form.encode()
            for form in (
                value,
                quote(value, safe=""),
                value.replace("/", "\\/"),
                base64.b64encode(value.encode()).decode().rstrip("="),
                base64.b64encode(f"somebody:{value}".encode()).decode().rstrip("="),
            )
        }
        for name, value in secrets.items()
    }
    return [f"{name} in {where}" for where, content in told for name, of in forms.items() if any(one in content for one in of)]


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, by name: as it is, and what is packed in it: Parquet's rows and SQLite's."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path, content in [
        (path, path.read_bytes()) for path in files
    ]:  # all at first: SQLite's journals go with its first reader
        yield str(path), str(path).encode() + content
        if content.startswith(b"PAR1"):
            table = pq.ParquetFile(io.BytesIO(content))
            yield f"{path}, its rows", json.dumps(table.read().to_pylist(), ensure_ascii=False, default=str).encode()
            yield f"{path}, its metadata", str(table.schema_arrow.metadata).encode() + str(table.metadata.metadata).encode()
        if content.startswith(b"SQLite format 3"):
            yield f"{path}, its rows", b"\n".join(_rows(path))


def _rows(path: Path) -> Iterator[bytes]:
    with closing(sqlite3.connect(path)) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield b"\t".join(value if isinstance(value, bytes) else str(value).encode() for value in row)


def test_what_is_really_there_is_found(tmp_path: Path) -> None:
    """In a compressed page of Parquet, over two pages of SQLite, in a log, in an address, and in what a command said."""
    names = secrets(PLANTED | PASSWORDS)
    for name, value in names.items():
        folder = tmp_path / name
        folder.mkdir()
        text = "x" * 4_000 + value + "x" * 4_000
        pq.write_table(pa.table({"text": [text]}), folder / "p.parquet", compression="zstd")
        with closing(sqlite3.connect(folder / "p.sqlite")) as database:
            database.execute("CREATE TABLE t (text TEXT)")
            database.executemany("INSERT INTO t VALUES (?)", [(text[at:],) for at in range(0, 4_000, 50)])
            database.commit()
        (folder / "p.log").write_text(f"Authorization: Bearer {value}\n")
        (folder / "p.json").write_text(json.dumps({"url": f"http://h/?key={quote(value, safe='')}"}))
        (folder / "basic.txt").write_text(base64.b64encode(f"somebody:{value}".encode()).decode())
        told = found(names, everything(folder))
        for file in ("p.parquet, its rows", "p.sqlite, its rows", "p.log", "p.json", "basic.txt"):
            assert f"{name} in {folder / file}" in told
        assert {one.partition(" ")[0] for one in told} == {name}


@pytest.mark.parametrize("who", ["somebody:canary", "somebody:can@ary", "canary"])
def test_an_address_is_shown_without_whoever_signs_in_there(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{who}@host")
    client = Client(Access(f"http://{who}@host", "key"))
    client.close()
    assert client.url == shown(f"http://{who}@host") == "http://host"
    assert page("model", "a/b") == "http://host/a/b"


# Runs


@contextmanager
def server(refuses: Callable[[str], int | None]) -> Iterator[str]:
    """A chat server that says back in every refusal what it was sent, the key included."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            status = refuses(text)
            answer: dict[str, Any] = {"error": {"message": f"Wrong key {self.headers['Authorization']}", "for": text[:20]}}
            if status is None:
                said = [f"{text} {at}" for at in range(body.get("n", 1))]
                if "response_format" in body:
                    said = ['{"winner": "A"}' if "0\n</answer A>" in text else '{"winner": "B"}']
                choices = [{"index": at, "message": {"content": one}, "finish_reason": "stop"} for at, one in enumerate(said)]
                answer = {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
            payload = json.dumps(answer).encode()
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1"
    finally:
        made.shutdown()
        made.server_close()


def asking(recipe: Make, url: str, **tables: Any) -> Recipe:
    """A recipe with a server's model to sample and to judge, each with a key of its own."""
    engine = {"type": "server", "base_url": url, "model": "m", "concurrency": 4, "retries": 1, "logprobs": False}
    sample = {"n": 2, "shard_size": 8, "max_failed": 0.5, "engine": {**engine, "key_env": "SAMPLER_KEY"}}
    return recipe(24, sample=sample, rank={"judge": {"type": "pairwise", "engine": engine}}, **tables)


def environment(folder: Path, **more: str) -> dict[str, str]:
    home = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home" / ".cache"), "PREFECT_API_URL": ""}
    return {**os.environ, **PLANTED, **PASSWORDS, "NO_PROXY": "127.0.0.1,localhost", **home, **more}


COMMANDS = "import json, sys; from dpo_data import cli; print([cli.main(argv) for argv in json.loads(sys.argv[1])])"


@pytest.mark.slow
def test_no_secret_is_left_by_the_commands(recipe: Make, tmp_path: Path, hub: HubServer) -> None:
    """A run with refused prompts up to its publication, and all that tells of it."""
    (tmp_path / "home").mkdir()
    publish = {"repo_id": "tester/canary", "judgments": True}
    with server(lambda text: 400 if "Question 7" in text else None) as url:
        made = asking(recipe, url, publish=publish, pair={"test": 0.2, "filters": {"near_identical": False, "private": False}})
        (tmp_path / "recipe.toml").write_text(dump(made))
        file, run, other = (str(tmp_path / name) for name in ("recipe.toml", "run", "fork"))
        commands = [
            *(["plan", file], ["run", file, "--run", run], ["status", run], ["report", run]),
            ["compare", run, run, "--out", str(tmp_path / "compare.html")],
            ["export", run, "--format", "trl", "--out", str(tmp_path / "trl")],
            ["fork", run, file, "--run", other],
        ]
        env = environment(tmp_path, **hub.environment(tmp_path / "home"), DPO_DATA_LOG_FORMAT="json")
        said = subprocess.run([sys.executable, "-c", COMMANDS, json.dumps(commands)], env=env, capture_output=True, timeout=250)
    assert said.returncode == 0 and said.stdout.decode().splitlines()[-1] == str([0] * len(commands)), said.stderr.decode()
    failed = [error for error in RunDir(tmp_path / "run").stage("sample").column("error") if error]
    assert failed and all("Wrong key Bearer …" in error for error in failed), "the server has told it"
    assert (tmp_path / "run" / "6-publish" / "README.md").exists() and hub.lines("commit")
    pushed = ((f"the Hub's {path}", content) for path, content in everything(hub.root))
    told = [*everything(tmp_path), *pushed, ("stdout", said.stdout), ("stderr", said.stderr)]
    assert not found(secrets(PLANTED | PASSWORDS), iter(told))


@pytest.mark.parametrize("status", [401, 404, 429])
def test_no_secret_is_in_a_traceback(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    for name, value in {**PLANTED, **PASSWORDS, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with server(lambda text: status) as url:
        (tmp_path / "recipe.toml").write_text(dump(asking(recipe, url)))
        with pytest.raises(EngineError) as raised:
            cli.main(["--debug", "run", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")])
    told = "".join(traceback.format_exception(raised.value)) + "".join(capfd.readouterr())
    assert "Wrong key Bearer …" in told
    assert not found(secrets(PLANTED | PASSWORDS), iter([*everything(tmp_path), ("the traceback", told.encode())]))


FLOWS = """
import sys
from flows import sample_and_train as script
script.RETRY_DELAY = 0
codes = [script.main([recipe, "--run", recipe + ".run"]) for recipe in sys.argv[1:]]
print("codes", *codes, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_no_secret_is_in_prefects_database(recipe: Make, tmp_path: Path) -> None:
    """Parameters, artifacts, logs, state messages and tracebacks of a flow run that ends well, and of one that fails. And
    Prefect's server listens on this machine alone."""
    (tmp_path / "home").mkdir()
    env = environment(tmp_path, PREFECT_HOME=str(tmp_path / "prefect"), PYTHONPATH=str(ROOT))
    with server(lambda text: 400 if "Question 7" in text else None) as good, server(lambda text: 401) as bad:
        recipes = [tmp_path / "good.toml", tmp_path / "bad.toml"]
        for file, url in zip(recipes, (good, bad), strict=True):
            file.write_text(dump(asking(recipe, url)))
        command = [sys.executable, "-c", FLOWS, *map(str, recipes)]
        with (
            (tmp_path / "out").open("wb") as out,
            subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=out) as flows,
        ):
            until = time.monotonic() + 250
            while b"codes" not in (tmp_path / "out").read_bytes():
                assert flows.poll() is None and time.monotonic() < until, (tmp_path / "out").read_text()
                time.sleep(0.5)
            heard = listening(psutil.Process(flows.pid))
            flows.communicate()
    assert "codes 0 4" in (tmp_path / "out").read_text()
    assert heard and set(heard) == {"127.0.0.1"}
    database = [content for where, content in everything(tmp_path / "prefect") if where.endswith("db, its rows")]
    assert len(database) == 1 and b"Wrong key Bearer" in database[0] and b"sample-and-train" in database[0]
    assert not found(secrets(PLANTED | PASSWORDS), everything(tmp_path))


def listening(process: psutil.Process) -> list[str]:
    """The addresses at which a process, or what it has started, waits for connections."""
    family = [process, *process.children(recursive=True)]
    found = [one for each in family for one in each.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    return [one.laddr.ip for one in found]


@pytest.mark.slow
def test_no_secret_is_pushed_to_argilla(recipe: Make, tmp_path: Path, argilla: LocalArgilla) -> None:
    """Nor is Argilla's own left in the run, or said. And it listens on this machine alone."""
    (tmp_path / "home").mkdir()
    made = recipe(6, rank={"judge": {"type": "argilla", "dataset": "canary", "workspace": "canary"}})
    (tmp_path / "recipe.toml").write_text(dump(made))
    url = argilla.url.replace("//", "//somebody:canary-at-argilla-0008@")
    env = environment(tmp_path, ARGILLA_API_URL=url, ARGILLA_API_KEY=argilla.key)
    command = [sys.executable, "-m", "dpo_data.cli", "run", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")]
    said = subprocess.run(command, env=env, capture_output=True, timeout=200)
    assert said.returncode == 75 and argilla.url.encode() in said.stderr, said.stderr
    planted = secrets(PLANTED | PASSWORDS) | {"ARGILLA_API_KEY": argilla.key}
    told = [*everything(tmp_path), ("stdout", said.stdout), ("stderr", said.stderr)]
    assert not found(planted, iter(told))
    del planted["ARGILLA_API_KEY"]  # its own, by which it knows us
    assert not found(planted, everything(argilla.home))
    running = who(argilla.home / "lock")
    assert running and set(listening(psutil.Process(running["pid"]))) == {"127.0.0.1"}
