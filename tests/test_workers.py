"""Several workers on a real Ray answer as one engine, whoever of them dies or is slow, and leave nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from fragile import Fragile, asks
from usage import wait

from dpo_data import pipeline, ray_cluster
from dpo_data.config import Recipe, parse
from dpo_data.engines.echo import Echo
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import EngineError, RecipeError
from dpo_data.rundir import RunDir
from dpo_data.seams import Completed, Request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not find_spec("ray"), reason="the extra `ray` is not installed"),  # not imported: it reads settings then
]

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray on this machine, which all tests share that name it; its workers find the engine of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", HERE)
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two engines would bind to the same cores
        with ray_cluster.local() as address:
            yield address


@pytest.fixture
def attached(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the cluster at RAY_ADDRESS."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)


@pytest.fixture
def fragile(attached: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes workers with engines that break."""
    made: list[Any] = []

    def make(workers: int = 2, **keys: Any) -> Any:
        made.append(Fragile(folder=str(tmp_path), workers=workers, **keys).build())
        return made[-1]

    yield make
    for one in made:
        one.close()


def pids(came: list[Completed]) -> Counter[str]:
    """How many answers are whose."""
    return Counter(one.outputs[0].text.split()[0] for one in came if one.outputs)


def check_ids(came: list[Completed], requests: list[Request]) -> None:
    """Each request once."""
    assert sorted(one.id for one in came) == sorted(request.id for request in requests)


def check_answered(came: list[Completed], requests: list[Request]) -> None:
    """Each request once, by its own text."""
    check_ids(came, requests)
    asked = {request.id: request.messages[-1]["content"] for request in requests}
    assert all(one.error or one.outputs[0].text.split(" ", 1)[1] == f"{asked[one.id]} None" for one in came)


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_all_workers_answer_and_say_what_one_says(fragile: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = fragile(delay=0.002)
    wait(lambda: list(engine.complete(iter(asks(["ready?"])), {})) and all(slot.ready for slot in engine._slots), 300)
    assert (engine.model, engine.policy) == ("fragile", {"dtype": "glass"})
    requests = asks([f"question {at}" for at in range(600)])
    came = list(engine.complete(iter(requests), {}))
    check_answered(came, requests)
    assert len(pids(came)) == 2 and min(pids(came).values()) > 100
    assert {"worker 1: glass is blown", "worker 2: glass is blown"} <= {one.getMessage() for one in caplog.records}


def test_what_is_asked_next_hangs_on_answers(fragile: Callable[..., Any]) -> None:
    engine, came = fragile(), []

    def requests() -> Iterator[Request | None]:
        for at, request in enumerate(asks([f"link {at}" for at in range(30)])):
            while len(came) < at:
                yield None
            yield request

    for answer in engine.complete(requests(), {}):
        came.append(answer)
    check_answered(came, asks([f"link {at}" for at in range(30)]))


def test_each_call_has_its_own_sampling_and_gets_its_own_answers(fragile: Callable[..., Any]) -> None:
    engine = fragile(delay=0.01)
    requests = asks([f"question {at}" for at in range(90)])
    for _ in engine.complete(iter(requests), {"word": "left"}):
        break  # and what was on the way is nobody's any more
    came = list(engine.complete(iter(requests), {"word": "right"}))
    assert [one.outputs[0].text.split()[-1] for one in came] == ["right"] * 90
    assert list(engine.complete(iter([]), {})) == list(engine.complete(iter([None]), {})) == []


def test_a_worker_that_is_killed_is_replaced_and_what_it_had_is_redone(
    fragile: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine = fragile(delay=0.02)
    requests: list[Request] = []
    came: list[Completed] = []

    def until_it_answers() -> Iterator[Request]:
        for request in asks([f"question {at}" for at in range(20_000)]):
            if len(requests) >= 300 and len(pids(came)) == 3:
                return
            requests.append(request)
            yield request

    for answer in engine.complete(until_it_answers(), {}):
        came.append(answer)
        if len(came) == 40:
            killed = pids(came).most_common(1)[0][0]
            os.kill(int(killed), signal.SIGKILL)
    check_answered(came, requests)
    assert not any(one.error for one in came), "innocents are not blamed"
    assert len(pids(came)) == 3
    assert "died and is replaced; what it had is redone: its process ended" in caplog.text


def test_a_prompt_that_kills_its_worker_is_set_aside_once_it_was_alone(fragile: Callable[..., Any], tmp_path: Path) -> None:
    engine = fragile(delay=0.002)
    requests = asks([*(f"question {at}" for at in range(50)), "die", *(f"question {at}" for at in range(50, 100))])
    came = list(engine.complete(iter(requests), {}))
    check_answered(came, requests)
    (poisoned,) = [one for one in came if one.error]
    assert poisoned.id == "50: die" and not poisoned.outputs
    begun = Counter(line.split(" ", 1)[1] for line in (tmp_path / "begun").read_text().splitlines())
    tries = begun["50: die"]
    assert poisoned.error == f"set aside after {tries} tries, each of which ended its worker: its process ended"
    assert 2 <= tries <= 4, "a hundred requests are cut twice at most"


def test_an_engine_that_fails_is_a_worker_that_dies(fragile: Callable[..., Any]) -> None:
    engine = fragile()
    requests = asks(["fail", "question 1", "question 2"])
    came = {one.id: one for one in engine.complete(iter(requests), {})}
    assert {id for id, one in came.items() if one.error} == {"0: fail"}
    assert str(came["0: fail"].error).endswith("each of which ended its worker: it fell off the table")


def test_a_slow_worker_does_not_hold_the_rest(fragile: Callable[..., Any]) -> None:
    engine = fragile()
    requests = asks([*(f"question {at}" for at in range(20)), "hang once", *(f"question {at}" for at in range(20, 40))])
    check_answered(list(engine.complete(iter(requests), {})), requests)


def test_what_no_other_worker_can_mend_ends_with_the_cause(fragile: Callable[..., Any]) -> None:
    engine = fragile(starts=2)
    with pytest.raises(EngineError, match=r"died 3 times in a row and answered nothing in between: it can be started no more"):
        list(engine.complete(iter(asks(["fail"] * 10)), {}))
    with pytest.raises(RecipeError, match="glass knows no 'oops'"):
        list(fragile().complete(iter(asks(["question"])), {"oops": 1}))
    with pytest.raises(EngineError, match=r"it can be started no more\. Buy another\.$"):
        fragile(starts=0)


def test_more_gpus_than_there_are(fragile: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_cluster.cluster():
        monkeypatch.setattr(ray_cluster, "is_own", lambda: True)
        with pytest.raises(EngineError, match=r"2 workers with 1 GPUs each want 2, and there are 0\. Lower"):
            fragile(gpus_per_worker=1)


def test_the_engines_are_closed_and_the_cluster_is_left(attached: None, tmp_path: Path) -> None:
    engine = Fragile(folder=str(tmp_path), workers=2).build()
    came = list(engine.complete(iter(asks([f"question {at}" for at in range(200)])), {}))
    engine.close()
    for pid in pids(came):
        assert (tmp_path / f"closed-{pid}").exists()
        wait(lambda pid=pid: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)
    with ray_cluster.cluster() as ray:
        assert ray.cluster_resources()["CPU"]
    assert not ray.is_initialized()


@pytest.fixture
def whole(attached: None, prompts: Callable[[int], str]) -> Callable[[int, int], Recipe]:
    """A recipe whose sampler has so many workers, and its judge so many."""

    def make(sampler: int, judge: int) -> Recipe:
        return parse(
            {
                "name": "whole",
                "prompts": {"path": prompts(60)},
                "sample": {"n": 4, "shard_size": 8, "engine": {"type": "echo", "workers": sampler}},
                "rank": {"judge": {"type": "pairwise", "engine": {"type": "echo", "workers": judge}}},
            }
        )

    return make


def files(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*.parquet")}


def test_one_worker_or_two_make_the_same_bytes_and_may_take_turns(whole: Any, tmp_path: Path) -> None:
    one, two, turns = (RunDir(tmp_path / name) for name in ("one", "two", "turns"))
    pipeline.run(whole(1, 1), one)
    pipeline.run(whole(2, 2), two)
    assert files(one) == files(two) and "3-pair/train.parquet" in files(one)
    shutil.copytree(one.path, turns.path)
    for name in ("1-sample/manifest.json", "1-sample/00002.parquet", "1-sample/00005.parquet"):
        (turns.path / name).unlink()
    for stage in ("2-rank", "3-pair"):
        shutil.rmtree(turns.path / stage)
    (turns.calls).unlink()
    pipeline.run(whole(2, 2), turns)
    assert files(turns) == files(one)


def test_a_driver_that_fails_between_two_answers_leaves_nothing_behind(tmp_path: Path) -> None:
    """It has closed nothing, and its own error is the only one."""
    script = (
        "from fragile import Fragile, asks; import sys, psutil\n"
        "engine = Fragile(folder=sys.argv[1], workers=2).build()\n"
        "for one in engine.complete(iter(asks(['question'] * 1000)), {}):\n"
        "    raylet = next(p for p in psutil.Process().children(recursive=True) if p.name() == 'raylet')\n"
        "    raise LookupError(raylet.environ()['TMPDIR'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=alone())
    assert re.findall(r"^\w*(?:Error|Exception)\b", done.stderr, re.M) == ["LookupError"]
    assert not Path(done.stderr.strip().rpartition(" ")[2]).exists()


def test_a_driver_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not the workers, nor Ray, nor its folder. While it runs, nothing of it listens to other machines."""
    script = (
        "from fragile import Fragile, asks; import sys\n"
        "engine = Fragile(folder=sys.argv[1], workers=2, delay=0.05).build()\n"
        "for one in engine.complete(iter(asks(['question'] * 100000)), {}): print(one.id, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=alone()) as driver:
        assert driver.stdout
        driver.stdout.readline()
        started = below(driver.pid)
        assert any(one.name() == "raylet" for one in started) and any("Worker" in one.name() for one in started)
        listens = [
            c.laddr.ip for one in [*started, psutil.Process(driver.pid)] for c in one.net_connections() if c.status == "LISTEN"
        ]
        assert listens and {ip.removeprefix("::ffff:") for ip in listens} == {"127.0.0.1"}
        folder = Path(next(one for one in started if one.name() == "raylet").environ()["TMPDIR"])
        assert (folder / "session_latest").exists()
        driver.kill()
    wait(lambda: not alive(started))
    wait(lambda: not folder.exists())


def test_ray_that_dies_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    script = (
        "from fragile import Fragile, asks; import contextlib, psutil, sys\n"
        "with contextlib.closing(Fragile(folder=sys.argv[1], workers=2, delay=0.05).build()) as engine:\n"
        "    came = engine.complete(iter(asks(['question'] * 100000)), {})\n"
        "    next(came)\n"
        "    next(p for p in psutil.Process().children(recursive=True) if p.name() == 'raylet').parent().kill()\n"
        "    list(came)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=alone(), check=False
    )
    assert done.returncode == 1
    assert "EngineError: Ray has ended on this machine: The child process was killed by SIGKILL. Run again" in done.stderr


def alone() -> dict[str, str]:
    """The environment of a process that starts a Ray of its own."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, "PYTHONPATH": HERE}


def test_of_two_machines_one_dies_and_the_other_does_its_work(
    cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has a GPU, so each has a worker, and nowhere is there room for another in the place of the dead one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", HERE)
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()  # where it notes its address, besides
        monkeypatch.setenv("RAY_TMPDIR", folder)
        machines = Cluster(True, head_node_args={"num_gpus": 1, "include_dashboard": False, "temp_dir": folder})
        try:
            other = machines.add_node(num_gpus=1)
            monkeypatch.setenv("RAY_ADDRESS", machines.address)
            engine = Fragile(folder=str(tmp_path), workers=2, gpus_per_worker=1, delay=0.01).build()
            came, requests = [], asks(["question"] * 600)
            with closing(engine):
                for one in engine.complete(iter(requests), {}):
                    came.append(one)
                    if other and len(pids(came)) == 2:
                        machines.remove_node(other, allow_graceful=False)
                        other = None
        finally:
            machines.shutdown()
    check_answered(came, requests)
    assert other is None and len(pids(came)) == 2
    assert "died and is replaced; what it had is redone" in caplog.text


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(EngineError, match=r"No Ray cluster answers at nowhere: .*Mend RAY_ADDRESS; or unset it"):
        Echo(workers=2).build()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"Ray is not installed\. pip install 'dpo-data\[ray\]'"):
        Echo(workers=2).build()


def test_keys_that_make_no_sense() -> None:
    for keys in ({"workers": 0}, {"gpus_per_worker": -1}):
        with pytest.raises(ValueError, match="greater than or equal"):
            Echo(**keys)


def test_vllm_answers_the_same_from_two_workers_as_from_one(attached: None, tiny_model: str) -> None:
    """One is what is left while the other, which is killed, is replaced."""
    pytest.importorskip("vllm")
    args = {"dtype": "float32", "max_num_seqs": 16, "kv_cache_memory_bytes": 2**28}
    requests = asks([f"Question {at}: name {at + 2} rivers" for at in range(80)])

    def texts() -> dict[str, list[str]]:
        came = list(engine.complete(iter(requests), {"n": 2, "max_tokens": 8}))
        check_ids(came, requests)
        return {one.id: [output.text for output in one.outputs] for one in came}

    with closing(Vllm(model=tiny_model, args=args, workers=2, gpus_per_worker=0).build()) as engine:
        wait(lambda: texts() and all(slot.ready for slot in engine._slots), 400)
        both = texts()
        actor = next(one for one in below(os.getpid()) if one.name().startswith("ray::Worker"))
        family = [actor, *below(actor.pid)]
        assert len(family) > 1
        actor.kill()
        alone = texts()
        assert [slot.ready for slot in engine._slots].count(True) == 1
        assert engine.policy["dtype"] == "float32"
        wait(lambda: not alive(family))
    same = sum(both[id] == alone[id] for id in both)
    assert same >= 76, "batched otherwise, rounding may differ, and seldom turns a token"
