"""Run directories in an object store: a real S3 server on loopback, with faults in front of it, and machines that die."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3_server
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import KEY, S3, SECRET, Fault
from usage import wait

from dpo_data import cli, lease, lineage, pipeline, store
from dpo_data.config import Recipe, load
from dpo_data.errors import EngineError, InputError, InUse, NotReady, StaleRun, StoreError
from dpo_data.export import export
from dpo_data.lock import Owner
from dpo_data.models import find_model, model_revision
from dpo_data.progress import Noted
from dpo_data.rounds import rounds
from dpo_data.rows import PreferencePair, Ranking
from dpo_data.rundir import PARTS, RunDir, matching
from dpo_data.status import Part, status
from dpo_data.store import Store
from dpo_data.train import train
from dpo_data.trainer.checkpoints import last_checkpoint

Make = Callable[..., Recipe]
Machine = Callable[[str], Path]


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server.serving() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, with no faults to come and an empty log, and this process as somebody who may use it."""
    from s3fs import S3FileSystem

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they remember the server of another test
    server.order()
    server.log()
    yield server
    server.order()


@pytest.fixture
def url(s3: S3, request: pytest.FixtureRequest) -> str:
    """Where a test's run is."""
    return f"s3://bucket/runs/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Goes to a machine of this name: one that has only the working copies that it has made. Returns where these are."""

    def go(name: str) -> Path:
        monkeypatch.setenv("DPO_DATA_CACHE", str(tmp_path / name))
        return tmp_path / name

    go("first")
    return go


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up soon."""
    from s3fs import S3FileSystem

    monkeypatch.setattr(S3FileSystem, "retries", 1)
    told = {"retries": {"mode": "standard", "max_attempts": 2}, "connect_timeout": 5, "read_timeout": 5}
    monkeypatch.setattr(store, "PATIENCE", told)


@pytest.fixture
def asked(recipe: Make) -> Make:
    """Makes a recipe whose judge is a model, so that there is a ledger; keywords replace its tables."""

    def make(**tables: Any) -> Recipe:
        return recipe(40, **{"rank": {"judge": {"type": "pairwise", "engine": {"type": "echo"}}}, **tables})

    return make


def made(folder: Path) -> dict[str, bytes]:
    """What a run has made, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def digests(run: RunDir) -> list[str | None]:
    return [run.stage(name).digest for name in ("sample", "rank", "pair")]


def objects(url: str) -> set[str]:
    return set(Store(url).objects)


def puts(s3: S3) -> list[str]:
    """The names of what was put into a run, in order."""
    return [line.split()[1].split("/", 4)[4] for line in s3.log() if line.startswith("PUT") and line.endswith(" 200")]


FILES = ("a.bin", "b.bin", "trainer_state.json")


def checkpoints(store: Store) -> list[Path]:
    """An older and a newer one, of `FILES`, in the working copy."""
    made = [store.folder / "4-train" / "checkpoints" / f"checkpoint-{step}" for step in (5, 10)]
    for at, folder in enumerate(made):
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_text("{}")
            os.utime(folder / name, (at, at))
    return made


def quiet(stage: str, done: int, total: int) -> None: ...


class TestARun:
    def test_is_the_same_as_a_local_one_and_appears_in_order(
        self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path
    ) -> None:
        here, there = RunDir(tmp_path / "local"), RunDir(url)
        for run in (here, there):
            pipeline.run(asked(), run)
        assert made(there.path) == made(here.path) and digests(there) == digests(here) and None not in digests(here)
        names = {str(path.relative_to(here.path)) for path in here.path.rglob("*") if path.is_file()}
        assert objects(url) == {name for name in names if not name.startswith(".")}
        put = puts(s3)
        for folder in ("1-sample", "2-rank", "3-pair"):
            of_stage = [name.removeprefix(f"{folder}/") for name in put if name.startswith(folder)]
            assert of_stage[0] == "recipe.json" and of_stage[-1] == "manifest.json"
            assert len(of_stage) == len(set(of_stage)), "each goes up once"
        shards = [name for name in put if name.startswith("1-sample/0")]
        assert shards == sorted(shards) and len(shards) == 5
        machine("second")
        assert made(store.local(url)) == made(here.path), "and so is what the store holds"

    def test_is_told_of_from_any_machine(
        self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipeline.run(asked(), RunDir(url))
        copy = machine("second")
        found = status(RunDir(url))
        assert found.run == url and [stage.state for stage in found.stages[:3]] == ["complete"] * 3
        assert not list(copy.rglob("*.parquet")), "no rows are fetched to say so"
        assert cli.main(["report", url]) == 0
        assert f"{url}/report.html" in capsys.readouterr().out
        export(RunDir(url), "trl", tmp_path / "exported")
        assert (tmp_path / "exported" / "train.parquet").is_file()
        assert RunDir(url).exists and not RunDir(f"{url}-not").exists
        with pytest.raises(InputError, match=f"No run at {url}-not"):
            status(RunDir(f"{url}-not"))

    def test_a_fork_keeps_what_holds(self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path) -> None:
        old = RunDir(url)
        pipeline.run(asked(), old)
        other = asked(rank={"judge": {"type": "listwise", "engine": {"type": "echo"}}})
        machine("second")
        for new in (RunDir(f"{url}-fork"), RunDir(tmp_path / "fork")):
            assert pipeline.fork(RunDir(url), new, other) == ["sample"]
            assert new.stage("sample").digest == old.stage("sample").digest
        machine("third")
        fork = RunDir(f"{url}-fork")
        pipeline.run(other, fork)
        assert (
            fork.stage("sample").digest == old.stage("sample").digest and fork.stage("rank").digest != old.stage("rank").digest
        )
        with pytest.raises(InputError, match=f"{url}-fork is begun already"):
            pipeline.fork(RunDir(url), fork, other)

    def test_a_fork_that_was_killed_is_repeated(
        self, asked: Make, url: str, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline.run(asked(), RunDir(url))
        new, put = RunDir(f"{url}-fork"), Store._put

        def killed(self: Store, name: str, file: Path) -> None:
            put(self, name, file)
            if name == "2-rank/00002.parquet":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "_put", killed)
            pipeline.fork(RunDir(url), new, asked())
        assert "2-rank/00002.parquet" in objects(str(new)) and "2-rank/manifest.json" not in objects(str(new))
        s3.log()
        machine("second")
        assert pipeline.fork(RunDir(url), RunDir(str(new)), asked()) == ["sample", "rank", "pair"]
        assert not [line for line in s3.log() if line.startswith("PUT") and "-fork/1-sample" in line], "it is there already"
        assert digests(RunDir(str(new))) == digests(RunDir(url)) and lease.FILE not in objects(str(new))

    def test_a_changed_recipe_is_refused_by_its_url(self, asked: Make, url: str, s3: S3, machine: Machine) -> None:
        pipeline.run(asked(), RunDir(url))
        machine("second")
        with pytest.raises(StaleRun, match=rf"{url}/1-sample was made with another recipe.*dpo-data fork {url} RECIPE"):
            pipeline.run(asked(seed=1), RunDir(url))
        with pytest.raises(NotReady, match=f"{url}-new/1-sample is not complete"):
            pipeline.run_stage("rank", asked(), RunDir(f"{url}-new"), quiet)

    def test_a_finished_stage_is_neither_fetched_nor_made_again(self, asked: Make, url: str, s3: S3, machine: Machine) -> None:
        run = RunDir(url)
        for name in ("sample", "rank"):
            pipeline.run_stage(name, asked(), run, quiet)
        machine("second")
        s3.log()
        pipeline.run_stage("sample", asked(), RunDir(url), quiet)
        assert not [line for line in s3.log() if ".parquet" in line]


def test_a_local_run_knows_of_no_store(tmp_path: Path) -> None:
    code = "import sys; from dpo_data.rundir import RunDir; RunDir(sys.argv[1]).write('x', 'y'); print('fsspec' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


class TestFaults:
    def test_busy_slow_and_broken_answers_change_nothing(
        self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        pipeline.run(asked(), RunDir(tmp_path / "local"))
        s3.order(
            Fault("PUT /bucket/runs", 1, broken=True),
            Fault("PUT", 2, status=503),
            Fault("1-sample/00002", 2, status=500),
            Fault("HEAD", 1, status=503),
            Fault("PUT", 1, broken=True),
            Fault("list-type", 1, status=503),
            Fault("1-sample/00003", 2, delay=0.5),
            Fault("2-rank", 1, broken=True),
        )
        pipeline.run(asked(), RunDir(url))
        assert s3.left() == 0
        machine("second")
        s3.order(Fault("GET /bucket", 2, status=503), Fault(".parquet", 2, broken=True), Fault("GET", 2, delay=0.3))
        assert made(store.local(url)) == made(tmp_path / "local")
        assert s3.left() == 0
        assert KEY not in caplog.text and SECRET not in caplog.text

    @pytest.mark.usefixtures("impatient")
    def test_an_answer_that_does_not_come_is_asked_for_again(self, url: str, s3: S3, machine: Machine) -> None:
        s3.order(Fault("PUT", 1, delay=15))
        RunDir(url).write("recipe.toml", "a = 1")
        assert s3.left() == 0 and objects(url) == {"recipe.toml"}

    @pytest.mark.usefixtures("impatient")
    def test_a_store_that_stays_away_is_told_and_gone_on_from(
        self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path
    ) -> None:
        s3.order(Fault("1-sample/00002", 99, status=503))
        with pytest.raises(
            StoreError, match=rf"{url}/1-sample/00002.parquet cannot be reached: SlowDown\..*run again"
        ) as error:
            pipeline.run(asked(), RunDir(url))
        assert KEY not in str(error.value) and SECRET not in str(error.value)
        assert "1-sample/00001.parquet" in objects(url) and "1-sample/manifest.json" not in objects(url)
        s3.order()
        s3.log()
        pipeline.run(asked(), RunDir(url))
        pipeline.run(asked(), RunDir(tmp_path / "local"))
        assert "1-sample/00002.parquet" in puts(s3), "what was made here, and did not arrive"
        assert made(store.local(url)) == made(tmp_path / "local")

    @pytest.mark.usefixtures("impatient")
    def test_a_large_file_that_breaks_off_is_read_on(
        self, url: str, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from s3fs import S3FileSystem

        monkeypatch.setattr(S3FileSystem, "retries", 3)
        monkeypatch.setattr(S3FileSystem, "default_block_size", 2**16)  # from there on a file is large
        RunDir(url).write("weights", random.Random(1).randbytes(2**18))
        machine("second")
        s3.order(Fault("GET /bucket/runs", 1, broken=True))
        assert Store(url).bring("weights") == ["weights"] and s3.left() == 0
        assert (Store(url).folder / "weights").read_bytes() == random.Random(1).randbytes(2**18)
        machine("third")
        s3.order(Fault("GET /bucket/runs", 99, broken=True))
        with pytest.raises(StoreError, match=rf"{url} cannot be reached: .*run again: what has arrived is kept"):
            Store(url).bring("weights")

    def test_what_is_not_deleted_is_told(self, url: str, s3: S3, machine: Machine) -> None:
        for name in ("a[1]", "a1", "b"):
            RunDir(url).write(name, "x")
        Store(url).drop(["a[1]"])
        assert objects(url) == {"a1", "b"}, "a name is no pattern"
        s3.order(Fault("DELETE /bucket", 9, status=403), Fault("b?", 9, status=403))
        there = Store(url)
        with pytest.raises(StoreError, match=r"AccessDenied\. Log in: .*list, read, write and delete"):
            there.drop(["a1", "b"])
        assert there.objects.keys() == objects(url) == {"a1", "b"}


RECIPE = """name = "machines"
[prompts]
path = "prompts.jsonl"
[sample]
n = 3
max_tokens = 8
shard_size = 16
engine = { type = "echo", delay = 0.002 }
[rank.judge]
type = "pairwise"
engine = { type = "echo", delay = 0.003 }
"""


def start(folder: Path, run: str, cache: Path) -> subprocess.Popen[str]:
    """`dpo-data run` on a machine whose working copies are in `cache`."""
    return subprocess.Popen(
        [sys.executable, "-m", "dpo_data.cli", "run", "machines.toml", "--run", run],
        cwd=folder,
        env={**os.environ, "DPO_DATA_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_machine_that_dies_is_followed_by_another(url: str, s3: S3, machine: Machine, tmp_path: Path) -> None:
    """One is killed while it samples, the next is asked to end while it ranks; each has nothing but what is in the store."""
    rows = (json.dumps({"prompt": f"Question {at}: name {at + 2} rivers of the world"}) for at in range(160))
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    (tmp_path / "machines.toml").write_text(RECIPE)
    ends = {"1-sample/00003.parquet": signal.SIGKILL, "2-rank/00002.parquet": signal.SIGTERM}
    for at, (shard, number) in enumerate(ends.items()):
        process = start(tmp_path, url, tmp_path / f"dead-{at}")
        until = time.monotonic() + 240
        while shard not in puts(s3):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=240)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), "in the middle"
        shutil.rmtree(tmp_path / f"dead-{at}")
    assert {"logs/run.log", "calls.sqlite"} < objects(url) and lease.FILE not in objects(url), "who could say farewell did"
    kept = {name: facts.version for name, facts in Store(url).objects.items() if name.endswith(".parquet")}
    last, local = start(tmp_path, url, tmp_path / "alive"), start(tmp_path, "local", tmp_path / "none")
    for process in (last, local):
        told = process.communicate(timeout=240)[1]
        assert process.returncode == 0, told
    machine("reader")
    assert made(store.local(url)) == made(tmp_path / "local")
    assert digests(RunDir(url)) == digests(RunDir(tmp_path / "local"))
    assert kept.items() <= {name: facts.version for name, facts in Store(url).objects.items()}.items(), "no shard is made twice"
    assert not [name for name in objects(url) if name.endswith(".tmp") or name == lease.FILE]


@pytest.mark.slow
def test_an_object_of_many_parts_is_whole_or_not_there(url: str, s3: S3, machine: Machine, tmp_path: Path) -> None:
    """Killed while the second part of three is on its way."""
    copy = Store(url).folder
    copy.mkdir(parents=True)
    with (copy / "weights.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    s3.order(Fault("partNumber=2", 1, delay=600))
    code = f"from dpo_data.store import Store; s = Store({url!r}); s.put(s.folder / 'weights.bin')"
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 240
    while s3.left():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert objects(url) == set()
    s3.order()
    Store(url).push(copy / "weights.bin")
    assert Store(url).objects["weights.bin"].bytes == 101 * 2**20


class TestWhatIsWrong:
    @pytest.mark.parametrize("given", ["s3://", "s3://bucket", "s3://bucket//x", "s3://bucket/../x", "s3:///x", "://x/y"])
    def test_a_url_that_names_no_folder(self, given: str) -> None:
        with pytest.raises(InputError, match=r"names no folder in a bucket\. Name one, as s3://bucket/runs/demo"):
            RunDir(given)

    def test_a_key_in_a_url_is_not_repeated(self) -> None:
        with pytest.raises(InputError, match="by the environment or a profile") as error:
            RunDir(f"s3://{KEY}:{SECRET}@bucket/x")
        assert KEY not in str(error.value) and "canary" not in str(error.value)

    def test_no_such_bucket(self, s3: S3, machine: Machine) -> None:
        with pytest.raises(
            StoreError, match=r"s3://no-bucket/x cannot be reached: .*does not exist. Make the bucket no-bucket"
        ):
            _ = RunDir("s3://no-bucket/x").path

    def test_nobody_is_logged_in(self, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        with pytest.raises(StoreError, match=r"Unable to locate credentials\. Log in: set AWS_PROFILE"):
            _ = RunDir("s3://bucket/x").path

    def test_somebody_who_may_not(self, s3: S3, machine: Machine) -> None:
        s3.order(Fault("list-type", 9, status=403))
        with pytest.raises(StoreError, match=r"AccessDenied\. Log in: .*list, read, write and delete in bucket") as error:
            _ = RunDir("s3://bucket/x").path
        assert KEY not in str(error.value) and SECRET not in str(error.value)

    @pytest.mark.usefixtures("impatient")
    def test_nobody_answers(self, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StoreError, match=r"Could not connect.*Check network and AWS_ENDPOINT_URL") as error:
            _ = RunDir("s3://bucket/x").path
        assert KEY not in str(error.value) and SECRET not in str(error.value)

    def test_the_extra_is_missing(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.registry import _registry

        monkeypatch.delitem(_registry, "s3", raising=False)
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(StoreError, match=r"Nothing here knows s3://.*Run `pip install 'dpo-data\[s3\]'`"):
            _ = RunDir("s3://bucket/x").path
        with pytest.raises(StoreError, match=r"Nothing here knows s4://.*Install what it needs, or use s3://"):
            _ = RunDir("s4://bucket/x").path

    def test_a_file_system_that_cannot_do_what_a_run_needs(self, machine: Machine) -> None:
        with pytest.raises(StoreError, match=r"The file system of data://x/run cannot do all that a run needs\. Use s3://"):
            _ = RunDir("data://x/run").path

    def test_a_file_system_that_connects_when_it_is_made(self, machine: Machine) -> None:
        with pytest.raises(StoreError, match=r"ftp://127\.0\.0\.1:9/run cannot be reached: Connection refused\. Check network"):
            _ = RunDir("ftp://127.0.0.1:9/run").path

    def test_an_object_that_would_lie_elsewhere(self, s3: S3, url: str, machine: Machine) -> None:
        import fsspec

        fsspec.filesystem("s3").pipe_file(f"{url}/1-sample//etc/passwd", b"x")
        with pytest.raises(InputError, match="would lie elsewhere on this machine"):
            _ = RunDir(url).path


NAMES = [
    "recipe.toml",
    "1-sample/recipe.json",
    "1-sample/00000.parquet",
    "1-sample/00001.parquet",
    "2-rank/recipe.json",
    "2-rank/x",
]
edits = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=3)), max_size=4)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["one", "two", "new"]), edits, st.booleans()), max_size=8), st.randoms())
def test_copies_follow_the_store(turns: list[tuple[str, list[tuple[str, bytes | None]], bool]], chance: random.Random) -> None:
    """Machines take turns. Each goes on from what the last one put, whatever it had itself."""
    import fsspec

    memory, url = fsspec.filesystem("memory"), f"memory://bucket/{chance.getrandbits(64)}"
    there: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for at, (who, changes, arrives) in enumerate(turns):
            patch.setenv("DPO_DATA_CACHE", f"{folder}/{who if who != 'new' else at}")
            run = Store(url)
            run.bring(".*")
            here = {name: (run.folder / name).read_bytes() for name in NAMES if (run.folder / name).is_file()}
            assert here.items() >= there.items(), "all that the store has"
            for name, data in changes:
                (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
                if data is None:
                    (run.folder / name).unlink(missing_ok=True)
                else:
                    (run.folder / name).write_bytes(data)
            if arrives:
                for one in ("recipe.toml", "1-sample", "2-rank"):
                    if (run.folder / one).exists() and ((run.folder / one / "recipe.json").exists() or one == "recipe.toml"):
                        run.push(run.folder / one)
            found = memory.find(url.removeprefix("memory:/"))
            there = {name.split("/", 3)[3]: memory.cat_file(name) for name in found}
            assert Store(url).objects.keys() == there.keys()


class TestTheWorkingCopy:
    @pytest.fixture
    def finished(self, url: str, s3: S3, machine: Machine) -> RunDir:
        """A run whose stage rank has two shards, and is complete."""
        run = RunDir(url)
        stage = run.stage("rank").open({"a": 1}, {})
        for at in range(2):
            stage.write(f"0000{at}.parquet", [Ranking(f"p{at}", "j", ["a"], [1.0], None, "[]")], Ranking)
        stage.finish()
        return run

    def test_damage_to_it_is_mended_from_the_store(self, finished: RunDir) -> None:
        whole = finished.stage("rank").shard(1).read_bytes()
        finished.stage("rank").shard(1).write_bytes(b"cut")
        finished.stage("rank").shard(0).unlink()
        again = RunDir(str(finished))
        again.stage("rank").require()
        assert again.stage("rank").shard(1).read_bytes() == whole

    def test_what_is_deleted_in_the_store_goes_here_too(self, finished: RunDir, machine: Machine) -> None:
        machine("second")
        Store(str(finished)).drop(["2-rank/00001.parquet", "2-rank/manifest.json"])
        machine("first")
        again = RunDir(str(finished)).stage("rank")
        assert [path.name for path in again.shards()] == ["00000.parquet"] and again.manifest is None

    def test_a_stage_begun_anew_elsewhere_is_not_mixed_with_this_one(self, finished: RunDir, machine: Machine) -> None:
        machine("second")
        other = Store(str(finished))
        other.drop(other.objects)
        stage = RunDir(str(finished)).stage("rank").open({"a": 2}, {})
        stage.write("00000.parquet", [Ranking("other", "j", ["a"], [1.0], None, "[]")], Ranking)
        machine("first")
        again = RunDir(str(finished)).stage("rank").open({"a": 2}, {})
        assert [row.prompt_id for row in again.rows(Ranking)] == ["other"]

    def test_what_goes_while_a_stage_is_made_goes_there_too(self, url: str, s3: S3, machine: Machine) -> None:
        stage = RunDir(url).stage("rank").open({"a": 1}, {})
        part = stage.part(0)
        part.write("00000.parquet", [Ranking("p", "j", ["a"], [1.0], None, "[]")], Ranking)
        assert "2-rank/part-0/00000.parquet" in objects(url)
        stage.finish(PARTS)
        assert objects(url) == {"2-rank/recipe.json", "2-rank/manifest.json"}

    def test_two_who_bring_the_same_at_once_each_have_it_whole(self, url: str, s3: S3, machine: Machine) -> None:
        machine("first")
        at_first = Store(url)
        at_first.folder.mkdir(parents=True)
        for at in range(20):
            (at_first.folder / f"{at}.bin").write_bytes(bytes([at]) * 200_000)
        at_first.push(at_first.folder)
        machine("second")
        start = threading.Barrier(2)

        def bring() -> list[bytes]:
            store = Store(url)
            assert len(store.objects) == 20
            start.wait(60)
            store.bring(".*")
            return [(store.folder / f"{at}.bin").read_bytes() for at in range(20)]

        with ThreadPoolExecutor(2) as pool:
            for brought in [pool.submit(bring), pool.submit(bring)]:
                assert brought.result(60) == [bytes([at]) * 200_000 for at in range(20)]
        assert {path.name for path in Store(url).folder.iterdir()} == {f"{at}.bin" for at in range(20)}

    def test_what_a_killed_process_has_not_all_fetched_goes_and_what_a_living_one_has_stays(
        self, url: str, s3: S3, machine: Machine
    ) -> None:
        for name in ("a", "b"):
            RunDir(url).write(name, name * 1000)
        cache = machine("second")
        s3.order(Fault(f"GET /{url.removeprefix('s3://')}/b", 1, delay=20))
        code = "import sys; from dpo_data.store import Store; Store(sys.argv[1]).bring('.*')"
        fetching = subprocess.Popen([sys.executable, "-c", code, url])
        try:
            wait(lambda: any(cache.glob(".on-the-way-*/*")), 60)
            (left,) = cache.glob(".on-the-way-*")
            assert Store(url).bring("a") == ["a"] and list(cache.glob(".on-the-way-*")) == [left] and any(left.iterdir())
        finally:
            fetching.kill()
            fetching.wait()
        assert left.exists() and not (Store(url).folder / "b").exists()
        assert Store(url).bring(".*") == ["b"] and not list(cache.glob(".on-the-way*"))
        assert {path.name: path.read_text() for path in Store(url).folder.iterdir()} == {"a": "a" * 1000, "b": "b" * 1000}

    def test_what_a_stage_goes_on_from_is_there_until_its_manifest_is(self, url: str, s3: S3, machine: Machine) -> None:
        stage = RunDir(url).stage("train").open({"a": 1}, {})
        (stage.path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        (stage.path / "checkpoints" / "checkpoint-5" / "trainer_state.json").write_text("{}")
        stage.keep()
        s3.log()
        manifest = stage.finish("checkpoints")
        wrote = [line for line in s3.log() if re.match("PUT|DELETE", line)]
        assert [re.search(r"manifest|checkpoint-5", line)[0] for line in wrote] == ["manifest", "checkpoint-5"]  # type: ignore[index]
        assert objects(url) == {"4-train/recipe.json", "4-train/manifest.json"} and manifest["files"] == []

    def test_of_who_was_killed_beside_its_manifest_it_goes_later(self, url: str, s3: S3, machine: Machine) -> None:
        stage = RunDir(url).stage("train").open({"a": 1}, {})
        stage.write_text("model.json", "weights")
        stage.finish()
        left = stage.path / "checkpoints" / "checkpoint-5" / "trainer_state.json"
        left.parent.mkdir(parents=True)
        left.write_text("{}")
        Store(url).put(left)
        machine("second")
        s3.log()
        RunDir(url).stage("train").open({"a": 1}, {}).sweep("checkpoints")
        assert objects(url) == {"4-train/recipe.json", "4-train/manifest.json", "4-train/model.json"}
        assert not [line for line in s3.log() if line.startswith("GET") and ("model.json" in line or "checkpoint-5" in line)]

    def test_a_checkpoint_that_goes_while_it_is_put_arrives_whole(self, url: str, s3: S3, machine: Machine) -> None:
        """A trainer that is quicker than the store deletes each before all of it has arrived."""
        store = Store(url)
        old, new = checkpoints(store)
        s3.order(Fault("checkpoint-5/a.bin", 1, delay=2))
        with ThreadPoolExecutor(1) as pool:
            pushed = pool.submit(store.push, store.folder / "4-train")
            wait(lambda: not s3.left())
            shutil.rmtree(old)
            pushed.result()
        assert objects(url) == {f"4-train/checkpoints/{one}/{file}" for one in (old.name, new.name) for file in FILES}
        store.push(store.folder / "4-train")
        assert objects(url) == {f"4-train/checkpoints/{new.name}/{file}" for file in FILES}

    def test_a_checkpoint_that_is_half_gone_does_not_count(
        self, url: str, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(url)
        old, new = checkpoints(store)
        link = os.link

        def late(source: str, target: str) -> None:
            if source == str(old / "b.bin"):
                os.unlink(source)
            link(source, target)

        monkeypatch.setattr("os.link", late)
        store.push(store.folder / "4-train")
        assert objects(url) == {f"4-train/checkpoints/{new.name}/{file}" for file in FILES}

    def test_the_newest_checkpoint_counts_first(self, url: str, s3: S3, machine: Machine) -> None:
        """Of an older one half may have been deleted before anybody looked."""
        store = Store(url)
        checkpoints(store)
        store.push(store.folder / "4-train")
        assert [re.sub(r".*-|/.*", "", name) for name in puts(s3) if name.endswith("state.json")] == ["10", "5"]

    def test_a_reader_takes_the_one_of_a_run_that_goes_on_as_it_is(self, url: str, s3: S3, machine: Machine) -> None:
        """Whoever looked at the store a moment ago knows nothing of what the run has put since."""
        import fsspec

        run, reader = RunDir(url), Store(url)
        run.write("recipe.toml", "a = 1")
        fsspec.filesystem("s3").pipe_file(f"{url}/report.json", b"{}")
        with run.held(), ThreadPoolExecutor(1) as pool:
            assert reader.objects.keys() == {"recipe.toml", "report.json", lease.FILE}
            (run.path / "report.json").unlink()
            (run.path / "recipe.toml").write_text("a = 2")
            stage = run.stage("rank").open({"a": 1}, {})
            stage.write("00000.parquet", [Ranking("p", "j", ["a"], [1.0], None, "[]")], Ranking)
            assert "report.json" in pool.submit(reader.bring, "[^/]+|2-rank/.*").result(), "what is missing"
            assert (run.path / "recipe.toml").read_text() == "a = 2", "and nothing else"
            assert stage.finished == len(stage.shards()) == 1 and stage.recipe
            stage.finish()
        assert RunDir(url).stage("rank").require()

    @pytest.mark.parametrize("harm", ["deleted", "cut", "changed"])
    def test_a_shard_that_is_harmed_in_the_store_is_made_again(self, finished: RunDir, machine: Machine, harm: str) -> None:
        import fsspec

        fs, shard = fsspec.filesystem("s3"), f"{finished}/2-rank/00001.parquet"
        data = fs.cat_file(shard)
        fs.rm_file(shard)
        if harm != "deleted":
            fs.pipe_file(shard, data[:-1] + (b"!" if harm == "changed" else b""))
        machine("second")
        again = RunDir(str(finished))
        with pytest.raises(InputError, match=r"00001.parquet is gone or changed.*run `dpo-data rank RECIPE` to redo it alone"):
            again.stage("rank").require()
        again = RunDir(str(finished))
        stage = again.stage("rank").open({"a": 1}, {})
        assert stage.manifest is None and [path.name for path in stage.shards()] == ["00000.parquet"]
        assert objects(str(finished)) == {"2-rank/recipe.json", "2-rank/00000.parquet"}
        stage.write("00001.parquet", [Ranking("p1", "j", ["a"], [1.0], None, "[]")], Ranking)
        assert stage.finish()["digest"] == finished.stage("rank").digest

    def test_what_others_count_by_goes_up_after_them_whatever_the_clock_says(self, url: str, s3: S3, machine: Machine) -> None:
        there = Store(url)
        names = ["trainer_state.json", "weights", "recipe.json", "manifest.json"]
        for at, name in enumerate(names):
            (there.folder / "4-train").mkdir(parents=True, exist_ok=True)
            (there.folder / "4-train" / name).write_text(name)
            os.utime(there.folder / "4-train" / name, (at, at))
        there.push(there.folder / "4-train")
        assert puts(s3) == [f"4-train/{name}" for name in ("recipe.json", "weights", "trainer_state.json", "manifest.json")]

    def test_a_mix_is_counted_without_its_rows(self, url: str, s3: S3, machine: Machine) -> None:
        run, mix = RunDir(url), {"engines": [{"type": "echo"}, {"type": "given"}]}
        stage = run.stage("sample").open({"sample": {"shard_size": 16, "engine": mix}}, {})
        for part, many in enumerate((0, 2)):
            for at in range(many):
                stage.part(part).write(f"0000{at}.parquet", [Ranking("p", "j", ["a"], [1.0], None, "[]")], Ranking)
        note = {**Noted("sample", quiet).note(), "total": 64}
        run.write("progress.json", json.dumps({"stages": ["sample"], "now": note}))
        copy = machine("second")
        [found] = status(RunDir(url)).stages
        assert found.parts == [Part("echo", 0), Part("given", 2)]
        assert not list(copy.rglob("*.parquet"))

    def test_one_that_was_deleted_empties_no_store(self, finished: RunDir) -> None:
        shutil.rmtree(finished.path)
        with pytest.raises(StoreError, match=r"the working copy of .*, is gone\. Run again"):
            finished.stage("rank").keep()
        assert RunDir(str(finished)).stage("rank").require()

    def test_what_was_paid_for_is_not_lost_to_an_older_copy(self, finished: RunDir, machine: Machine) -> None:
        """The ledger goes up when a stage ends; until then this machine's is the newer one."""
        finished.calls.write_bytes(b"one answer")
        finished.keep(finished.calls)
        finished.calls.write_bytes(b"one answer and another")
        assert RunDir(str(finished)).calls.read_bytes() == b"one answer and another"
        machine("second")
        second = RunDir(str(finished))
        assert second.calls.read_bytes() == b"one answer"
        second.calls.write_bytes(b"other answers")
        second.keep(second.calls)
        machine("first")
        (finished.path / "calls.sqlite-wal").write_bytes(b"of the old one")
        assert RunDir(str(finished)).calls.read_bytes() == b"other answers"
        assert not (finished.path / "calls.sqlite-wal").exists()

    @pytest.mark.usefixtures("impatient")
    def test_a_log_that_does_not_arrive_hides_no_error(
        self, finished: RunDir, s3: S3, caplog: pytest.LogCaptureFixture
    ) -> None:
        (finished.logs / "run.log").write_text("a line")
        s3.order(Fault("PUT", 9, status=500))
        finished.keep(finished.logs)
        assert "logs/run.log cannot be reached" in caplog.text
        s3.order()
        finished.keep(finished.logs)
        assert "logs/run.log" in objects(str(finished))


class TestTheLease:
    def test_a_second_machine_is_refused(self, url: str, recipe: Make, machine: Machine) -> None:
        with RunDir(url).held(), RunDir(url).held():
            machine("second")
            told = status_of_lease(url)
            put_lease(url, Owner(told["pid"], "elsewhere", "ann", "dpo-data run x.toml", "today"))
            with pytest.raises(InUse, match=rf"{url} is in use by process \d+ of ann on elsewhere, since today.*delete {url}/"):
                pipeline.run(recipe(), RunDir(url))
            assert str(RunDir(url).holder).startswith("process") and objects(url) == {lease.FILE}
            machine("first")
            put_lease(url, Owner(**{name: told[name] for name in Owner.__dataclass_fields__}), lease.place())
        assert objects(url) == set() and RunDir(url).holder is None

    def test_of_a_process_that_is_gone_it_is_taken_over(
        self, url: str, machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        put_lease(url, Owner(int(gone.stdout), socket.gethostname(), "ann", "dpo-data", "today"), lease.place())
        with RunDir(url).held():
            assert "is gone: its lease is taken over" in caplog.text
        put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data", "today"))
        with pytest.raises(InUse), RunDir(url).held():
            pass
        monkeypatch.setattr(lease, "TERM", -1.0)
        monkeypatch.setattr(lease, "EVERY", 0.02)
        with RunDir(url).held():
            assert status_of_lease(url)["pid"] == os.getpid()

    def test_it_is_renewed_and_who_lost_it_writes_no_more(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "EVERY", 0.02)
        run = RunDir(url)
        with run.held():
            first = status_of_lease(url)["renewed"]
            wait(lambda: status_of_lease(url)["renewed"] > first)
            run.write("recipe.toml", "a = 1")
            until = time.monotonic() + 60
            with pytest.raises(InUse, match="in use by process 1 of ann on elsewhere"):
                while time.monotonic() < until:
                    put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data run", "today"))
                    run.write("recipe.toml", "a = 2")
        assert status_of_lease(url)["host"] == "elsewhere", "it is not given back by who lost it"

    def test_a_process_id_counts_where_it_was_given(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        put_lease(url, Owner(int(gone.stdout), socket.gethostname(), "ann", "dpo-data", "today"), "another boot")
        with pytest.raises(InUse, match=f"process {gone.stdout.strip()} of ann"), RunDir(url).held():
            pass
        put_lease(url, Owner(os.getppid(), socket.gethostname(), "ann", "dpo-data", "today"), lease.place())
        with pytest.raises(InUse), RunDir(url).held():
            pass
        monkeypatch.setattr(lease, "TERM", -1.0)
        monkeypatch.setattr(lease, "EVERY", 0.02)
        with RunDir(url).held():
            assert "is gone: its lease is taken over" in caplog.text, "that id is another process's by now"

    def test_a_fast_clock_takes_nothing_from_the_living(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []

        def renewed(seconds: float) -> None:
            waited.append(seconds)
            put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data", "today"))

        put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data", "today"))
        monkeypatch.setattr(lease, "TERM", -1.0)
        with monkeypatch.context() as patch, pytest.raises(InUse, match="process 1 of ann"):
            patch.setattr(time, "sleep", renewed)
            lease.held(Store(url)).__enter__()
        assert waited == [2 * lease.EVERY]

    @pytest.mark.parametrize("conditions", [True, False])
    def test_who_slept_asks_before_the_next_write(
        self, url: str, s3: S3, machine: Machine, monkeypatch: pytest.MonkeyPatch, conditions: bool
    ) -> None:
        """Also where the store knows no conditional writes."""
        from s3fs import S3FileSystem

        pipe = S3FileSystem._pipe_file

        async def unconditional(self: S3FileSystem, path: str, data: bytes, **condition: Any) -> Any:
            if condition and not conditions:
                raise OSError(errno.ENOSYS, "not implemented")
            return await pipe(self, path, data, **condition)

        monkeypatch.setattr(S3FileSystem, "_pipe_file", unconditional)
        run, passed = RunDir(url), 0.0
        monkeypatch.setattr(lease, "_clock", lambda: passed)
        with run.held():
            first = status_of_lease(url)["renewed"]
            run.write("recipe.toml", "a = 1")
            assert status_of_lease(url)["renewed"] == first
            passed += lease.TERM
            run.write("recipe.toml", "a = 2")
            assert status_of_lease(url)["renewed"] > first, "it is ours yet"
            passed += lease.TERM
            put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data run", "today"))
            run.calls.write_bytes(b"an answer")
            run.keep(run.calls)
            with pytest.raises(InUse, match="in use by process 1 of ann on elsewhere"):
                run.write("recipe.toml", "a = 3")
        assert objects(url) == {lease.FILE, "recipe.toml"}
        assert status_of_lease(url)["host"] == "elsewhere"

    def test_it_gives_back_its_own_alone_and_does_not_wait(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RunDir(url).held():
            put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data run", "today"))
        assert status_of_lease(url)["host"] == "elsewhere"
        monkeypatch.setattr(lease, "EVERY", 0.02)
        asks, answered = threading.Event(), threading.Event()

        def silent(*_: Any) -> str:
            asks.set()
            assert answered.wait(60)
            return ""

        with monkeypatch.context() as patch, RunDir(f"{url}-silent").held():
            patch.setattr(lease, "_write", silent)
            assert asks.wait(60)
        assert not answered.is_set() and objects(f"{url}-silent") == set()
        answered.set()

    def test_one_that_somebody_deleted_is_written_anew(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        import fsspec

        monkeypatch.setattr(lease, "EVERY", 0.02)
        with RunDir(url).held():
            fsspec.filesystem("s3").rm_file(f"{url}/{lease.FILE}")
            wait(lambda: objects(url) == {lease.FILE})
        assert objects(url) == set() and not caplog.records

    def test_who_cannot_renew_it_writes_no_more(self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> str:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(lease, "EVERY", 0.02)
        run = RunDir(url)
        with run.held():
            monkeypatch.setattr(lease, "_write", fail)
            until = time.monotonic() + 60
            with pytest.raises(StoreError, match=r"is not renewed any more: ZeroDivisionError.*Run again"):
                while time.monotonic() < until:
                    run.write("recipe.toml", "a = 1")

    def test_who_is_refused_leaves_the_log_alone(self, asked: Make, url: str, s3: S3, machine: Machine) -> None:
        run = RunDir(url)
        (run.logs / "run.log").write_text("old")
        run.keep(run.logs)
        machine("second")
        assert (RunDir(url).logs / "run.log").read_text() == "old"
        machine("first")
        (run.logs / "run.log").write_text("new")
        run.keep(run.logs)
        machine("second")
        put_lease(url, Owner(1, "elsewhere", "ann", "dpo-data run", "today"))
        s3.log()
        with pytest.raises(InUse):
            pipeline.run_stage("sample", asked(), RunDir(url), quiet)
        assert puts(s3) == []

    def test_of_two_that_begin_at_once_one_is_refused(
        self, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with lease.held(Store(url)):
            monkeypatch.setattr(lease, "_found", lambda url: None)  # the second saw none, for it looked before
            with pytest.raises(InUse, match="another process"), lease.held(Store(url)):
                pass


def put_lease(url: str, owner: Owner, place: str = "elsewhere") -> None:
    import fsspec

    told = {**asdict(owner), "place": place, "renewed": time.time()}
    fsspec.filesystem("s3").pipe_file(f"{url}/{lease.FILE}", json.dumps(told).encode())


def status_of_lease(url: str) -> dict[str, Any]:
    import fsspec

    told: dict[str, Any] = json.loads(fsspec.filesystem("s3").cat_file(f"{url}/{lease.FILE}"))
    return told


def in_rounds(model: str, path: str, table: dict[str, Any]) -> Recipe:
    """A recipe with this table of rounds, of whose models none is loaded."""
    from test_rounds import Tying, asking

    recipe = asking(path, rounds=table)
    sample = recipe.sample.model_copy(update={"n": 3, "engine": Tying(model=model)})
    return recipe.model_copy(update={"sample": sample})


class TestRounds:
    def test_a_second_one_begins_on_another_machine(
        self, tiny_model: str, prompts: Callable[[int], str], url: str, s3: S3, machine: Machine
    ) -> None:
        from test_rounds import play_first

        recipe = in_rounds(tiny_model, prompts(60), {"count": 2, "reused": False})
        play_first(recipe, RunDir(url))
        pipeline.conclude(recipe, RunDir(url), *next(rounds(recipe, RunDir(url))))
        machine("second")
        second, folder = list(rounds(recipe, RunDir(url)))[1]
        adapter = f"{url}/round-1/4-train/model"
        assert second.lineage and second.lineage.runs == [f"{url}/round-1"] and second.policy().adapter == adapter
        pipeline.run_stage("sample", second, folder, quiet)
        machine("third")
        again, folder = list(rounds(recipe, RunDir(url)))[1]
        assert again == second
        pipeline.run_stage("rank", again, folder, quiet)
        assert [str(one) for one in RunDir(url).rounds] == [f"{url}/round-1", f"{url}/round-2"]
        assert load(folder.path / "recipe.toml").lineage == second.lineage
        assert set(folder.stage("sample").require()["models"]) == {adapter}, "as every machine calls it"

    def test_a_run_goes_on_from_the_newest_beside_it(
        self, tiny_model: str, prompts: Callable[[int], str], url: str, s3: S3, machine: Machine
    ) -> None:
        from test_rounds import play_first

        recipe = in_rounds(tiny_model, prompts(60), {"continued": True})
        for day in ("day-2", "day-1"):  # the newest is what was evaluated last
            machine(day)
            play_first(recipe, RunDir(f"{url}/{day}"))
            pipeline.conclude(recipe, RunDir(f"{url}/{day}"), *next(rounds(recipe, RunDir(f"{url}/{day}"))))
            time.sleep(1.1)  # the store tells whole seconds
        machine("second")
        assert str(lineage.newest(recipe, RunDir(f"{url}/day-3"))) == f"{url}/day-1"
        assert [str(run) for run in matching(f"{url}/day-[12]")] == [f"{url}/day-1", f"{url}/day-2"]


def test_a_model_in_a_store_is_that_model(tiny_model: str, url: str, s3: S3, machine: Machine) -> None:
    there = Store(f"{url}/model")
    shutil.copytree(tiny_model, there.folder)
    for file in sorted(there.folder.iterdir()):
        there.put(file)
    machine("second")
    assert model_revision(f"{url}/model") == model_revision(tiny_model)
    assert Path(find_model(f"{url}/model"), "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.3])
def test_a_checkpoint_is_in_the_store_as_soon_as_it_is_saved(
    recipe: Make, tiny_model: str, url: str, s3: S3, machine: Machine, delay: float
) -> None:
    """Whole, so that training goes on from it on another machine; also where the store is slower than the trainer, which has
    deleted each checkpoint by the time it has arrived."""
    from test_train import pairs

    stage = RunDir(url).stage("pair").open({}, {})
    for split, rows in {"train": pairs(40), "test": []}.items():
        stage.write(f"{split}.parquet", rows, PreferencePair)
    stage.finish(train=40, test=0)
    s3.order(Fault("PUT /bucket", 10_000, delay=delay))

    def kill() -> None:
        try:
            wait(lambda: [name for name in puts(s3) if re.search(r"checkpoint-\d+/trainer_state\.json", name)], 200)
        finally:
            trainers = [one for one in psutil.Process().children() if "dpo_data.trainer.child:work" in one.cmdline()]
            os.kill(trainers[0].pid, signal.SIGKILL)

    given = {"model": tiny_model, "epochs": 200, "batch_size": 8, "save_steps": 5}
    with ThreadPoolExecutor(1) as pool, pytest.raises(EngineError, match="SIGKILL"):
        killed = pool.submit(kill)
        train(recipe(4, train=given), RunDir(url), quiet)
    killed.result()
    s3.order()
    machine("second")
    found = last_checkpoint(RunDir(url).stage("train").path / "checkpoints")
    assert found
    names = {path.name for path in found.iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"} < names


@pytest.mark.usefixtures("on_prefect")
class TestFlows:
    def test_a_flow_run_has_its_run_in_the_store(self, asked: Make, url: str, s3: S3, machine: Machine, tmp_path: Path) -> None:
        from flows.sample_and_train import read, sample_and_train

        words = sample_and_train(asked(), f"{url}/{{name}}-{{date}}")
        [run] = matching(f"{url}/test-????-??-??T????")
        assert f"{run}/report.html" in words
        machine("second")
        assert read(f"{run}/recipe.toml") == asked()
        assert RunDir(str(run)).stage("pair").require()["train"]

    def test_who_waits_for_people_finds_the_run_there(self, asked: Make, url: str, s3: S3, machine: Machine) -> None:
        from flows.curate import ANNOUNCED, collect

        run = RunDir(f"{url}/test")
        for name in ("sample", "rank"):
            pipeline.run_stage(name, asked(), run, quiet)
        machine("second")
        assert "ranked" in collect(asked(), f"{url}/{{name}}", return_state=True).message
        told = json.loads((RunDir(str(run)).path / ANNOUNCED).read_text())
        assert told["payload"] == {"recipe": f"{run}/recipe.toml", "run": str(run)}
        assert collect(asked(), f"{url}/{{name}}", return_state=True).message.endswith("awaits anything")
