"""Runs with people in a real Argilla, and what becomes of them when something is killed: one error, then a rerun ends well."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from argilla_server import LocalArgilla, serving
from desk import Desk, group, order_of, person, ranked

from dpo_data.argilla import exchange, local
from dpo_data.argilla.access import Access
from dpo_data.argilla.client import Client
from dpo_data.argilla.lock import who
from dpo_data.errors import ArgillaError
from dpo_data.rows import PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir

PROMPTS = 30


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalArgilla]:
    """A server that a test may kill."""
    with serving(tmp_path_factory.mktemp("mortal")) as server:
        yield server


def recipe(desk: Desk, folder: Path, count: int = PROMPTS, **judge: Any) -> None:
    """Write a recipe for these people, with its prompts, into a folder."""
    rows = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) for at in range(count))
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    table = {"type": "argilla", "dataset": "d", "workspace": desk.workspace, "home": str(desk.home), **judge}
    (folder / "people.toml").write_text(
        'name = "people"\n[prompts]\npath = "prompts.jsonl"\nnear_duplicates = 1\n'
        '[sample]\nn = 3\nmax_tokens = 200\nshard_size = 8\nengine = { type = "echo" }\n[rank.judge]\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
        + "[pair]\nfilters = {}\n"
    )


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dpo_data.cli", "run", "people.toml", *arguments]
    env = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code and the last line of a whole run."""
    process = start(folder, *arguments, **environment)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said.strip().splitlines()[-1] if said.strip() else ""


def answer_all(desk: Desk, who: str, records: list[dict[str, Any]]) -> dict[str, str]:
    """Rank what a record shows last as the best. Returns the best answer's id, by prompt."""
    best = {}
    for record in records:
        ids = order_of(record)
        desk.answer(who, record, {"ranking": ranked(record, {id: 3 - at for at, id in enumerate(ids)})})
        best[record["metadata"]["prompt_id"]] = ids[-1]
    return best


def test_a_whole_run(desk: Desk, tmp_path: Path) -> None:
    anna = person()
    recipe(desk, tmp_path, annotators=[anna])
    code, said = run(tmp_path)
    page = f"{desk.argilla.url}/dataset/{desk.dataset()['id']}/annotation-mode"
    assert (code, said) == (75, f"dpo-data: error: {PROMPTS} of {PROMPTS} await annotation at {page}. Run again to collect.")
    records = desk.records()
    first = answer_all(desk, anna, records[:20])
    code, said = run(tmp_path)
    assert code == 75 and said.startswith("dpo-data: error: 10 of 30 await annotation at ")
    rest = answer_all(desk, anna, records[20:])
    assert run(tmp_path)[0] == 0
    folder = RunDir(tmp_path / "runs" / "people")
    rankings = {row.prompt_id: row for row in folder.stage("rank").rows(Ranking)}
    assert {row.judge for row in rankings.values()} == {"argilla:d"} and len(desk.records()) == PROMPTS
    best = first | rest
    assert {id: row.completion_ids[row.scores.index(1.0)] for id, row in rankings.items()} == best
    pairs = [pair for name in ("train", "test") for pair in folder.stage("pair").rows(PreferencePair, f"{name}.parquet")]
    assert pairs and all(pair.chosen_id == best[pair.prompt_id] for pair in pairs)
    told = json.loads((folder.path / "report.json").read_text())
    assert told["scores"]["judge"] == "argilla:d"


def test_a_run_that_is_killed_while_it_pushes(desk: Desk, tmp_path: Path) -> None:
    count = 600
    recipe(desk, tmp_path, count)
    killed = 0
    for least in (1, 250):
        process = start(tmp_path)
        while process.poll() is None and pushed(desk) < least:
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.communicate()
    assert killed, "it was too fast for every kill"
    between = pushed(desk)
    code, said = run(tmp_path)
    assert code == 75 and f"{count} of {count} await" in said and between <= count
    ids = [one["metadata"]["prompt_id"] for one in desk.records()]
    sampled = [row.prompt_id for row in RunDir(tmp_path / "runs" / "people").stage("sample").rows(Sample)]
    assert sorted(ids) == sorted(sampled) and len(set(ids)) == count


def pushed(desk: Desk) -> int:
    """How many records there are; 0 where there is no dataset yet."""
    try:
        return int(desk.ask("GET", f"datasets/{desk.dataset()['id']}/records", params={"limit": 1})["total"])
    except StopIteration:
        return 0


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ARGILLA_API_KEY": "wrong"}, "does not know the API key"),
        ({"ARGILLA_API_URL": "http://127.0.0.1:9", "ARGILLA_API_KEY": "k"}, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sampled(
    desk: Desk, tmp_path: Path, environment: dict[str, str], told: str
) -> None:
    recipe(desk, tmp_path)
    code, said = run(tmp_path, **{"ARGILLA_API_URL": desk.argilla.url, **environment})
    assert code == 4 and told in said and not (tmp_path / "runs" / "people" / "1-sample").exists()


def test_where_no_argilla_is_known(tmp_path: Path, desk: Desk) -> None:
    recipe(desk, tmp_path, home=str(tmp_path / "none"))
    code, said = run(tmp_path)
    assert code == 4 and "dpo-data argilla up" in said and not (tmp_path / "runs" / "people" / "1-sample").exists()


ASKED = [group(f"p{at}", "a " * 400, "b", "c") for at in range(300)]


def dies_at(monkeypatch: pytest.MonkeyPatch, home: Path, which: int, is_it: Callable[[str, str], bool], delay: float) -> None:
    """Kill the server of this home, so many seconds after the given one of those requests was sent."""
    count = 0
    ask = Client.ask

    def asking(self: Client, method: str, path: str, **more: Any) -> Any:
        nonlocal count
        if is_it(method, path):
            count += 1
            if count == which:
                server = who(home / "lock")
                assert server is not None
                threading.Timer(delay, os.kill, (server["pid"], signal.SIGKILL)).start()
                if not delay:
                    while who(home / "lock"):
                        time.sleep(0.01)
        return ask(self, method, path, **more)

    monkeypatch.setattr(Client, "ask", asking)
    monkeypatch.setattr("dpo_data.argilla.client.PAUSES", (0.1, 0.2))


def back(mortal: LocalArgilla) -> Desk:
    """The server, started again; on another port."""
    access = local.up(mortal.home, 0)
    return Desk(LocalArgilla(access.url, access.key, mortal.home, mortal.username, mortal.password))


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_a_server_that_is_killed_in_the_middle_of_a_push(
    mortal: LocalArgilla, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    desk = back(mortal)
    with monkeypatch.context() as patched:
        patched.setattr(exchange, "BATCH", 100)
        dies_at(patched, mortal.home, 2, lambda method, path: path.endswith("records/bulk"), delay)
        with pytest.raises(ArgillaError, match=r"cannot be reached: .*run again: what it has is kept"):
            desk.run(ASKED)
    again = back(mortal)
    again.workspace = desk.workspace
    sent = len(again.records())
    assert 100 <= sent <= 300 and sent % 100 == 0, "a batch is there, or it is not; the last one perhaps unheard of"
    assert again.run(ASKED)[1].startswith("300 of 300 await")
    assert len({one["external_id"] for one in again.records()}) == len(again.records()) == 300


def test_a_server_that_is_killed_in_the_middle_of_a_collect(mortal: LocalArgilla, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = back(mortal)
    desk.run(ASKED[:50])
    for name in ("p3", "p40"):
        desk.rank(None, name, {f"{name}.0": 3, f"{name}.1": 1, f"{name}.2": 2})
    with monkeypatch.context() as patched:
        patched.setattr(exchange, "PAGE", 20)
        dies_at(patched, mortal.home, 3, lambda method, path: method == "GET" and path.endswith("/records"), 0.0)
        with pytest.raises(ArgillaError, match="cannot be reached"):
            desk.run(ASKED[:50])
    again = back(mortal)
    again.workspace = desk.workspace
    given, waits = again.run(ASKED[:50])
    assert given.keys() == {"p3", "p40"} and waits.startswith("48 of 50") and len(again.records()) == 50


def test_a_server_that_answers_too_slowly(mortal: LocalArgilla, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held in the middle of a push, and goes on later with what was sent to it."""
    desk = back(mortal)
    server = who(mortal.home / "lock")
    assert server is not None
    ask, batches = Client.ask, list[str]()

    def asking(self: Client, method: str, path: str, **more: Any) -> Any:
        if path.endswith("records/bulk"):
            batches.append(path)
            if len(batches) == 2:
                os.kill(server["pid"], signal.SIGSTOP)
        return ask(self, method, path, **more)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(exchange, "BATCH", 100)
            patched.setattr(Client, "ask", asking)
            patched.setattr("dpo_data.argilla.client.PAUSES", (0.1,))
            patched.setattr("dpo_data.argilla.client.TIMEOUT", httpx.Timeout(3))
            with pytest.raises(ArgillaError, match=r"it takes too long to answer.*run again: what it has is kept"):
                desk.run(ASKED)
    finally:
        os.kill(server["pid"], signal.SIGCONT)
    assert desk.run(ASKED)[1].startswith("300 of 300 await")
    assert len({one["external_id"] for one in desk.records()}) == len(desk.records()) == 300


def test_a_server_that_comes_back_is_not_noticed(desk: Desk) -> None:
    """It is busy three times in the middle of a push."""
    desk.run(ASKED[:1])
    busy = iter([503, 503, 502])
    real = httpx.HTTPTransport()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT" and (status := next(busy, None)):
            return httpx.Response(status)
        return real.handle_request(request)

    with closing(Client(Access(desk.argilla.url, desk.argilla.key), httpx.MockTransport(answer), lambda _: None)) as client:
        judge = desk.judge()
        judge._exchange(client, [*ASKED[:5]], {3})  # type: ignore[arg-type]
    assert len(desk.records()) == 5 and next(busy, None) is None
