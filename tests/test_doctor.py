"""`dpo-data doctor`: what is checked, what is told to do about it, and that no key is shown."""

import json
import resource
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from usage import free_port

from dpo_data import cli
from dpo_data.doctor import machine, packages, servers
from dpo_data.doctor.check import Check

CANARY = "canary-5f0c1e"

NO_IMPORTS = "print('{}')"
"""In the place of importing torch and vLLM, which takes seconds."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing heavy is imported, nobody is logged in, and no server of this machine is asked."""
    monkeypatch.setattr(packages, "PROGRAM", NO_IMPORTS)
    monkeypatch.setattr(servers, "PREFECT", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setattr(servers, "ARGILLA", f"http://127.0.0.1:{free_port()}")
    for name in ("PREFECT_API_URL", "RAY_ADDRESS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))  # read when it is imported
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, dict[str, str]]]:
    """`dpo-data doctor`, of a recipe with these changes where there are any: its exit code, and its lines by their names."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "Name a river"}\n')
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[prompts]\npath = "p.jsonl"\n'
        '[sample.engine]\ntype = "echo"\n[rank.judge]\ntype = "rule"\nrule = "concise"\n'
    )

    def doctor(*changes: str) -> tuple[int, dict[str, str]]:
        sets = [part for change in changes for part in ("--set", change)]
        code = cli.main(["doctor", *(["r.toml", *sets] if changes else [])])
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err
        lines = [line.split(maxsplit=2) for line in said.out.splitlines()]
        return code, {name: f"{mark} {told}" for mark, name, told in lines}

    return doctor


@contextmanager
def answering(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """A server with these statuses and bodies, by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program that stands for nvidia-smi."""

    def make(body: str) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    return make


H100 = """case "$1" in
--query*) echo "0, NVIDIA H100 80GB HBM3, 570.124.06, {used}, 81559, 3" ;;
*) echo "| NVIDIA-SMI 570.124.06    Driver Version: 570.124.06    CUDA Version: {cuda}     |" ;;
esac"""


def test_each_line_is_a_check_of_this_machine(look: Callable[..., tuple[int, dict[str, str]]]) -> None:
    code, lines = look()
    assert list(lines) == [
        *("python", "gpu", "torch", "vllm", "memory", "shm", "disk", "files", "extras", "prefect", "argilla", "keys")
    ]
    assert {line.split()[0] for line in lines.values()} <= {"ok", "warn", "bad"}
    assert code == int(any(line.startswith("bad") for line in lines.values()))


def test_what_is_imported_lies_not_in_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "planted.py").touch()
    code = "import importlib.util, json; print(json.dumps({'found': bool(importlib.util.find_spec('planted'))}))"
    monkeypatch.setattr(packages, "PROGRAM", code)
    monkeypatch.setattr(packages, "LIMIT", 200)
    assert packages.Imports().told() == {"found": False}


@pytest.mark.slow
def test_vllm_is_imported_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.undo()
    monkeypatch.setattr(packages, "LIMIT", 200)
    told = packages.Imports().told()
    assert told["platform"] == ("cuda" if told["gpu"] else "cpu")
    assert packages.vllm(told, needed=True).mark == "ok"


def test_what_cannot_be_imported_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PROGRAM", "raise ImportError('libcuda.so.1: cannot open shared object file')")
    told = packages.Imports().told()
    assert packages.vllm(told, needed=False).mark == "warn"
    needed = packages.vllm(told, needed=True)
    assert needed.mark == "bad" and "libcuda.so.1: cannot open shared object file" in needed.told


def test_what_takes_too_long_to_import_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(packages, "LIMIT", 0.2)
    imports = packages.Imports()
    assert packages.vllm(imports.told(), needed=True) == Check(
        "warn", "vllm", f"{next(packages.installed(packages.VLLM))}, not imported within 0.2 s: the machine is busy or its "
        "disk slow; look again",
    )  # fmt: skip
    assert imports._process.poll() is not None


def test_a_gpu_its_driver_and_what_torch_wants_of_it(smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    smi(H100.format(used=1024, cuda="12.8"))
    driver = packages.driver()
    (gpu,) = packages.gpu(driver)
    told = "0: NVIDIA H100 80GB HBM3, driver 570.124.06, CUDA 12.8, 78.6 of 79.6 GiB free"
    assert gpu == Check("ok", "gpu", told)

    def torch(cuda: str | None, gpu: str | None = "H100") -> Check:
        monkeypatch.setattr(packages, "_built", lambda: {"__version__": "2.9.0", "cuda": cuda})
        return packages.torch(driver, {"gpu": gpu})

    assert torch("12.9") == Check("ok", "torch", "2.9.0, for CUDA 12.9"), "the same major version will do"
    too_new, blind, none = torch("13.0"), torch(None), torch("12.8", gpu=None)
    assert too_new.mark == "bad" and "the driver runs up to CUDA 12.8: update the driver" in too_new.told
    assert blind.mark == "warn" and "with the extra `gpu`" in blind.told
    assert none.mark == "bad" and "CUDA_VISIBLE_DEVICES" in none.told


def test_a_gpu_that_somebody_holds(smi: Callable[[str], None]) -> None:
    smi(H100.format(used=60_000, cuda="12.8"))
    (gpu,) = packages.gpu(packages.driver())
    assert gpu.mark == "warn" and "21.1 of 79.6 GiB free: end what else holds it" in gpu.told


def test_a_driver_that_is_broken(smi: Callable[[str], None]) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    smi(f'echo "{said}"; exit 9')
    (gpu,) = packages.gpu(packages.driver())
    assert gpu.mark == "bad" and gpu.told.startswith(said)


SERVER = '{type="server", base_url="URL/v1", model="m"}'


@pytest.mark.parametrize(
    ("answer", "mark", "told"),
    [
        ((200, {"data": [{"id": "m"}]}), "ok", "serves m; OPENAI_API_KEY is set"),
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), "bad", "does not serve m: it has a, b"),
        ((401, {"error": CANARY}), "bad", "does not take the key in OPENAI_API_KEY"),
        ((200, b"<html>"), "warn", "lists no models"),
    ],
)
def test_the_servers_of_a_recipe(
    look: Callable[..., tuple[int, dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, Any],
    mark: str,
    told: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with answering({"/v1/models": answer}) as url:
        code, lines = look(f"sample.engine={SERVER.replace('URL', url)}")
    assert lines["server"].startswith(f"{mark} {url}/v1") and told in lines["server"]
    assert code == int(mark == "bad")


def test_a_server_that_is_not_there_or_wants_a_key(
    look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, lines = look('rank.judge={type="pairwise"}', f"rank.judge.engine={SERVER.replace('URL', url)}")
    assert code == 1 and lines["server"].startswith(f"bad no answer from {url}/v1 (") and "mend base_url" in lines["server"]
    with answering({"/v1/models": (401, {})}) as url:
        assert (
            f"bad {url}/v1 wants a key: set OPENAI_API_KEY" in look(f"sample.engine={SERVER.replace('URL', url)}")[1]["server"]
        )
    monkeypatch.setenv("OPENAI_API_KEY", f"{CANARY}\nx")
    assert "bad OPENAI_API_KEY cannot be a key" in look(f"sample.engine={SERVER.replace('URL', url)}")[1]["server"]


def test_prefect(look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert look()[1]["prefect"].startswith("ok port 4200 is free: `dpo-data deploy`")
    with answering({"/api/health": (200, True)}) as url:
        monkeypatch.setattr(servers, "PREFECT", f"{url}/api")
        assert look()[1]["prefect"] == f"ok a server answers at {url}/api"
    with answering({}) as url:
        monkeypatch.setattr(servers, "PREFECT", f"{url}/api")
        assert look()[1]["prefect"].startswith("warn port 4200 is taken, and not by Prefect")
    for address in (f"http://me:{CANARY}@127.0.0.1:{free_port()}/api", "nonsense"):
        monkeypatch.setenv("PREFECT_API_URL", address)
        assert look()[1]["prefect"].startswith(f"warn no server at {servers.shown(address)} (")


def test_argilla(look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    people = 'rank.judge={type="argilla", dataset="d"}'
    assert look()[1]["argilla"].startswith("ok port 6900 is free")
    code, lines = look(people)
    assert code == 1 and lines["argilla"].startswith("bad No Argilla is known")
    monkeypatch.setenv("ARGILLA_API_KEY", CANARY)
    assert look()[1]["argilla"].startswith("bad ARGILLA_API_KEY is set and ARGILLA_API_URL is not")
    for status, told in (
        (200, "ok answers at"),
        (401, "bad {} does not know the key: mend ARGILLA_API_KEY"),
        (500, "bad {}: it"),
    ):
        with answering({"/api/v1/me": (status, {})}) as url:
            monkeypatch.setenv("ARGILLA_API_URL", url)
            assert look(people)[1]["argilla"].startswith(told.format(url))
    assert "bad" in look(people)[1]["argilla"], "it is gone"
    monkeypatch.setenv("ARGILLA_API_KEY", f"{CANARY} é")
    assert "ARGILLA_API_KEY cannot be a key" in look(people)[1]["argilla"]


def test_the_keys_of_a_recipe(
    look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ('publish={repo_id="me/pairs"}',)
    code, lines = look(*asked)
    assert code == 1 and lines["key"].startswith("bad HF_TOKEN is not set: log in with `hf auth login`")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(CANARY)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    assert look(*asked)[1]["key"] == "ok HF_TOKEN is known from `hf auth login`"
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert look(*asked)[1]["key"] == "ok HF_TOKEN is set"
    for name in ("OPENAI_API_KEY", "ARGILLA_API_KEY"):
        monkeypatch.setenv(name, CANARY)
    assert look()[1]["keys"] == "ok HF_TOKEN: set, OPENAI_API_KEY: set, ARGILLA_API_KEY: set"
    tracked = 'train={model="m", report_to=["wandb", "tensorboard"]}'
    monkeypatch.setenv("HOME", str(tmp_path))
    assert look(tracked)[1]["key"].startswith("warn WANDB_API_KEY is not set")


def test_the_extras_of_a_recipe(look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("sample.engine.workers=2")[1]["extras"].startswith("ok ray: ray ")
    monkeypatch.setattr(packages, "EXTRAS", {"ray": "no-such-package", "qlora": "no-such-either", "s3": "s3fs"})
    assert look()[1]["extras"].startswith("ok ray: not installed")
    code, lines = look("sample.engine.workers=2")
    assert (code, lines["extras"]) == (1, "bad ray is missing: pip install 'dpo-data[ray]'")


def test_ray(look: Callable[..., tuple[int, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ray" not in look()[1]
    place = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{place}")
    code, lines = look()
    assert code == 1 and lines["ray"].startswith(f"bad nothing listens at RAY_ADDRESS, {place}")
    with answering({}) as url:
        monkeypatch.setenv("RAY_ADDRESS", url.removeprefix("http://"))
        assert look()[1]["ray"].startswith("ok something listens")


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none").mark == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert machine.files() == Check(
        "warn", "files", "1024 open files at most: run `ulimit -n 65536` first; Ray and many requests need more"
    )

    def free(gib: float) -> Check:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, int(gib * 2**30)))  # type: ignore[attr-defined]
        return machine.disk(str(tmp_path / "runs" / "x"))

    assert [free(gib).mark for gib in (100, 3, 0.2)] == ["ok", "warn", "bad"]
    assert "--shm-size" in machine.shared_memory(tmp_path).told
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert free(100).mark == "bad" and "may not be written" in free(100).told
