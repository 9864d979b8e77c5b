"""What tests share: no network, recipes and prompts on disk, a tiny random model."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DPO_DATA_ALLOW_CODE"] = "1"  # tests bring rules of their own; test_safety takes it away
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads that wait for a core which the neighbour has would spin
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

from argilla_server import LocalArgilla, serving
from desk import Desk
from hub import HubServer

from dpo_data.config import Recipe, parse

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would our children
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does a closed terminal
settings.register_profile(  # what is slow there is the neighbours
    "shared machine", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, a file at a time, those files begin that have slow tests, lest a long one be left for the
    end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Llama with random weights, with the demo's tokenizer and chat template."""
    import torch

    from dpo_data.demo.model import build_tokenizer, tiny_llama
    from dpo_data.demo.questions import questions

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"{q.prompt} {q.answer} {q.sentence}" for q in questions()])
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def quick_vllm() -> Iterator[None]:
    """vLLM with its core and its worker in the child's own process: it starts in 10 s, not in 28. The tests of vLLM itself, of
    faults and of the demo have them in processes of their own, as users have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer) -> Iterator[HubServer]:
    """A Hugging Face Hub on loopback, with no faults to come and an empty log. Its clients run in processes of their own."""
    hub_server.hub.log.clear()
    yield hub_server
    hub_server.hub.faults.clear()


@pytest.fixture(scope="session")
def argilla(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalArgilla]:
    """A real Argilla server with its web UI, which all tests share: let each make datasets of its own."""
    with serving(tmp_path_factory.mktemp("argilla")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_other_argilla(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test speaks to the Argilla of whoever runs the tests."""
    for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def desk(argilla: LocalArgilla) -> Desk:
    """A workspace at it in which nobody else works."""
    return Desk(argilla)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Prefect server such as the script starts for itself, with an empty database, as the environment that names it. One for
    all tests that run flows in this process: Prefect keeps sending events to the first that it has known."""
    from flows.sample_and_train import start_server

    with pytest.MonkeyPatch.context() as patch:
        home = str(tmp_path_factory.mktemp("prefect"))
        patch.setenv("PREFECT_HOME", home)
        patch.setenv("PREFECT_API_URL", "")
        return {"PREFECT_HOME": home, "PREFECT_API_URL": start_server()}


@pytest.fixture(scope="module")
def on_prefect(prefect_server: dict[str, str]) -> Iterator[None]:
    """Flows of the module run on that server."""
    from prefect.context import refresh_global_settings_context

    with pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_server.items():
            patch.setenv(name, value)
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[[int], str]:
    """Writes a file of that many different prompts, and returns its path."""

    def write(count: int) -> str:
        path = tmp_path / f"prompts-{count}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Question {at}: name {at + 2} rivers"}) + "\n" for at in range(count)))
        return str(path)

    return write


@pytest.fixture
def recipe(prompts: Callable[[int], str]) -> Callable[..., Recipe]:
    """Makes a recipe with the echo engine and the built-in `concise` rule; keywords replace its tables."""

    def make(count: int = 40, **tables: Any) -> Recipe:
        given: dict[str, Any] = {
            "name": "test",
            "prompts": {"path": prompts(count)},
            "sample": {"n": 4, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}},
            "rank": {"judge": {"type": "rule", "rule": "concise"}},
        }
        return parse({**given, **tables})

    return make
