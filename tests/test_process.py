"""A model in a process of its own that hangs is ended, and one whose memory does not suffice gets one smaller batch."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest

from dpo_data.child import Parent, lacks_memory
from dpo_data.engines import vllm, vllm_child
from dpo_data.engines.process import EngineProcess
from dpo_data.engines.vllm import Vllm
from dpo_data.engines.vllm_child import keep_answering, smaller
from dpo_data.engines.worker import Feed
from dpo_data.errors import EngineError, OutOfMemory
from dpo_data.judges import reward_child
from dpo_data.seams import Completed, Request

CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
"""As torch says it."""


class Slow:
    """Answers one request after the other, each in so many steps; `habit` is what goes wrong with it."""

    def __init__(self, settings: dict[str, Any], steps: int = 1, pause: float = 0.0, habit: str = ""):
        self._waiting: list[str] = []
        self._left, self._steps, self._pause, self._habit = steps, steps, pause, habit
        self._smaller = settings["smaller"]
        if (habit == "start" and not self._smaller) or habit == "start always":
            raise RuntimeError(CUDA)
        if habit.startswith("core"):
            multiprocessing.Process(target=time.sleep, args=(0.2,), name="EngineCore").start()
            time.sleep(1.0 if habit == "core, told" else 600)
            raise RuntimeError("why it died")

    @property
    def live(self) -> int:
        return len(self._waiting)

    @property
    def started(self) -> dict[str, Any]:
        return {"smaller": self._smaller}

    def accept(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._waiting.append(message["id"])

    def step(self) -> list[dict[str, Any]]:
        time.sleep(self._pause)
        if self._waiting[0] == "5" and ((self._habit == "memory" and not self._smaller) or self._habit == "memory always"):
            print(CUDA, flush=True)
            os._exit(1)
        if self._waiting[0] == "5" and self._habit == "hang":
            time.sleep(600)
        self._left -= 1
        if self._left:
            return []
        self._left = self._steps
        return [{"id": self._waiting.pop(0), "outputs": [], "error": None}]


def serve(parent: Parent) -> None:
    habit, steps, pause = os.environ["HABIT"].rsplit(",", 2)
    vllm_child.BEAT, vllm_child.GRACE = 0.05, 5.0
    keep_answering(parent, lambda settings: Slow(settings, int(steps), float(pause), habit))


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Starts a Slow in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "config.json").write_text("{}")
    made: list[EngineProcess] = []

    def make(habit: str = "", steps: int = 1, pause: float = 0.0, stall: float = 5.0) -> EngineProcess:
        monkeypatch.setenv("HABIT", f"{habit},{steps},{pause}")
        made.append(EngineProcess("test_process:serve", "vLLM", Vllm(model=str(tmp_path)), stall))
        return made[-1]

    yield make
    for one in made:
        one.close()


def requests(count: int = 10) -> list[Request]:
    return [Request(str(at), [], at) for at in range(count)]


def ids(process: EngineProcess) -> list[str]:
    return [answer.id for answer in process.answers(iter(requests()), 4, {})]


def test_one_that_hangs_is_ended_and_what_came_before_is_kept(start: Callable[..., EngineProcess]) -> None:
    process = start("hang", stall=3.0)
    pid, came = process.child.pid, []
    with pytest.raises(EngineError) as error:
        for answer in process.answers(iter(requests()), 4):
            came.append(answer.id)
    assert came == ["0", "1", "2", "3", "4"]
    assert str(error.value).startswith("vLLM hangs: no step in 3 s, and 4 requests await an answer. Run again to go on")
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("habit", "words"), [("core", "vLLM's engine core ended with exit code 0"), ("core, told", "why it died")]
)
def test_a_core_that_dies_before_it_has_started_is_no_endless_wait(
    start: Callable[..., EngineProcess], habit: str, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        start(habit)


def test_one_that_is_stopped_hangs(start: Callable[..., EngineProcess]) -> None:
    process = start(stall=3.0)
    coming = process.answers(iter(requests()), 4)
    next(coming)
    os.kill(process.child.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="hangs"):
        list(coming)
    assert not psutil.pid_exists(process.child.pid)


def test_a_long_answer_is_no_hang(start: Callable[..., EngineProcess]) -> None:
    """Each answer takes twice as long as a hang, in steps that are far shorter."""
    process = start(steps=120, pause=0.05, stall=3.0)
    assert [answer.id for answer in process.answers(iter(requests(2)), 4)] == ["0", "1"]


def test_a_parent_that_is_busy_takes_nobody_for_hung(start: Callable[..., EngineProcess]) -> None:
    came = []
    for answer in start(stall=2.0).answers(iter(requests(3)), 4):
        came.append(answer.id)
        time.sleep(2.5)
    assert came == ["0", "1", "2"]


class Written:
    """The pipe to a child, and how many lines each write to it had."""

    def __init__(self, pipe: TextIO):
        self._pipe, self.lines = pipe, list[int]()
        self.flush, self.close = pipe.flush, pipe.close

    def write(self, text: str) -> int:
        self.lines.append(text.count("\n"))
        return self._pipe.write(text)


def test_requests_go_in_groups_and_one_by_one_where_few_may_wait(
    start: Callable[..., EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write wakes the child. A window of four has no room for groups: there the next one goes when an answer has come."""
    process = start()
    pipe = Written(process.child._down)
    monkeypatch.setattr(process.child, "_down", pipe)
    assert len(list(process.answers(iter(requests(1000)), 256))) == 1000
    assert pipe.lines == [64] * 15 + [40]
    pipe.lines.clear()
    assert len(list(process.answers(iter(requests(10)), 4))) == 10
    assert pipe.lines == [1] * 10


@pytest.mark.parametrize("habit", ["start", "memory"])
def test_out_of_memory_is_met_by_a_smaller_batch_once_and_said(
    start: Callable[..., EngineProcess], habit: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(habit)
    assert process.started == {"smaller": habit == "start"}
    assert ids(process) == [str(at) for at in range(10)], "each is answered once, whichever process did"
    assert process.started == {"smaller": True}
    (warned,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "CUDA out of memory" in warned and warned.endswith("Trying once more, with a smaller batch")


@pytest.mark.parametrize("habit", ["start always", "memory always"])
def test_out_of_memory_again_is_an_error_with_a_remedy(start: Callable[..., EngineProcess], habit: str) -> None:
    with pytest.raises(OutOfMemory) as error:
        ids(start(habit))
    assert "CUDA out of memory" in str(error.value)
    assert ", with a smaller batch too. Lower max_model_len, max_num_seqs or max_num_batched_tokens" in str(error.value)


TOLD = [
    CUDA,
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "ValueError: To serve at least one request with the model's max seq len (8192), (1.0 GiB KV cache is needed, which is "
    "larger than the available KV cache memory (0.5 GiB).",
    "ValueError: Free memory on device cuda:0 (1.0/79.1 GiB) on startup is less than desired GPU memory utilization (0.9)",
    "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering",
]
"""The words of torch 2.13 and of vLLM 0.32 (v1/core/kv_cache_utils.py, v1/worker/utils.py and gpu_model_runner.py)."""


@pytest.mark.parametrize("words", TOLD)
def test_the_words_for_too_little_memory_are_known(words: str) -> None:
    assert lacks_memory(words)


@pytest.mark.parametrize("words", ["ValueError: no such model", "RuntimeError: NCCL error", "TimeoutError: engine core"])
def test_other_words_are_not(words: str) -> None:
    assert not lacks_memory(words)


def test_a_smaller_batch() -> None:
    assert smaller({}) == {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
    assert smaller({"max_num_seqs": 32, "max_num_batched_tokens": 1000}) == {"max_num_seqs": 16, "max_num_batched_tokens": 500}
    assert smaller({"max_num_seqs": 1, "enable_chunked_prefill": False}) == {"max_num_seqs": 1}


def test_its_own_limit_decides_no_row() -> None:
    assert "stall" not in Vllm(model="m", stall=9).deciding("model", "stall")


@pytest.mark.slow
def test_vllm_whose_core_is_stopped_hangs_and_is_ended(tiny_model: str) -> None:
    pytest.importorskip("vllm")
    engine = Vllm(model=tiny_model, args={"dtype": "float32"}, stall=300).build()
    asked = (Request(str(at), [{"role": "user", "content": f"Name {at} rivers"}], at) for at in range(400))
    coming = engine.complete(asked, {"n": 4, "max_tokens": 64})
    next(coming)
    assert not list(Path(engine._process.child._temp).glob("torchinductor*")), "compiled there, it is compiled at each start"
    everybody = psutil.Process(engine._process.child.pid).children(recursive=True)
    [core] = [one for one in everybody if "EngineCore" in " ".join(one.cmdline())]
    core.suspend()
    engine._process._stall = 5.0
    with pytest.raises(EngineError, match="vLLM hangs: no step in 5 s"):
        list(coming)
    assert not psutil.wait_procs(everybody, timeout=60)[1]


@pytest.mark.parametrize("habit", ["", "memory"])
def test_a_call_that_is_given_up_leaves_the_next_one_alone(start: Callable[..., EngineProcess], habit: str) -> None:
    """Request 5, of which a child with this habit dies, is among those that nobody waits for."""
    process = start(habit)
    coming = process.answers(iter(requests()), 9)
    next(coming)
    assert [answer.id for answer in process.answers(iter(requests(3)), 9)] == ["0", "1", "2"]
    assert process.started == {"smaller": bool(habit)}


class Falls:
    """An engine whose first call fails once it is let, and whose other calls answer."""

    model = "falls"

    def __init__(self) -> None:
        self.let = threading.Event()

    def complete(self, requests: Any, sampling: Any) -> Iterator[Completed]:
        if not self.let.is_set():
            self.let.wait(60)
            raise EngineError("it fell off the table")
        yield from (Completed(request.id, []) for request in requests if request)

    def close(self) -> None: ...


def test_an_engine_that_failed_in_a_call_that_was_given_up_is_not_asked_again() -> None:
    engine = Falls()
    before = Feed(1, engine, {}, None)
    before.exchange(requests(1), 5)
    feed = Feed(2, engine, {}, before)
    engine.let.set()
    answers, _, error = feed.exchange(requests(1), -1)
    while not (answers or error):
        answers, _, error = feed.exchange([], -1)
    assert error and error.what == "it fell off the table"


def test_a_revision_that_cannot_be_told_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(settings: Any) -> str:
        raise EngineError("no revision")

    monkeypatch.setattr(vllm, "engine_revision", fails)
    monkeypatch.setattr(vllm, "EngineProcess", lambda *given, **more: pytest.fail("it was started"))
    with pytest.raises(EngineError, match="no revision"):
        Vllm(model=str(tmp_path)).build()


def test_a_smaller_batch_of_conversations_holds_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**args: Any) -> tuple[Any, Any]:
        found = reward_child._vllm_args({"model": "m", "revision": None, "smaller": True, "args": args})
        return found["max_num_seqs"], found.get("max_num_batched_tokens")

    monkeypatch.setattr(reward_child, "cpu_defaults", dict)
    assert made() == (64, None)
    assert made(max_num_batched_tokens=5000) == (64, 2500)
    assert made(enable_chunked_prefill=True) == (64, 2048)
    assert made(max_num_batched_tokens=5000, enable_chunked_prefill=False) == (64, 5000)
