"""vLLM in a child process, kept fed: requests stream in, finished groups stream out, and no batch is drained in between."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

from dpo_data import chat_template
from dpo_data.child import Child
from dpo_data.errors import EngineError
from dpo_data.models import engine_revision, find_model
from dpo_data.seams import Completed, Output, Request, Sampling, Settings, ready

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
}

log = logging.getLogger(__name__)


class Vllm(Settings):
    """vLLM in this machine. `args` are vLLM's own engine arguments, passed on as they are; `adapter` is a LoRA folder.
    `chat_template`: a Jinja file that takes the place of the model's own."""

    type: Literal["vllm"] = "vllm"
    model: str
    revision: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    args: dict[str, Any] = {}

    def build(self) -> "VllmEngine":
        return VllmEngine(self)


class VllmEngine:
    """Owns one child with one vLLM engine, started when it is made. See `vllm_child` for the other side.

    `policy` says how a `logprob` came about: `revision` and `adapter` of the weights, `dtype`, `quantization`, `logprobs` (of
    vLLM's modes), and `template`, the hash of the chat template."""

    def __init__(self, settings: Vllm):
        began = time.monotonic()
        self.model = settings.adapter or settings.model
        template = chat_template.read(settings.chat_template) if settings.chat_template else None
        log.info("starting vLLM with %s", self.model)
        self._child, started = start("dpo_data.engines.vllm_child:serve", "vLLM", settings, chat_template=template)
        self._max_num_seqs = int(started["max_num_seqs"])
        self.policy = {"revision": engine_revision(settings), "adapter": settings.adapter, **started["policy"]}
        log.info("vLLM is ready after %.0f s", time.monotonic() - began)

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Keeps enough requests in the child for four full batches, and yields each group of answers as it finishes."""
        window = max(32, 4 * self._max_num_seqs // int(sampling.get("n", 1)))
        self._child.send({"sampling": dict(sampling)})
        yield from feed(self._child, requests, window)

    def close(self) -> None:
        self._child.close()


def start(target: str, who: str, settings: Any, **more: Any) -> tuple[Child, dict[str, Any]]:
    """A child that holds the model of an engine's table, with what `more` it must know, and what it tells of itself once it is
    ready. `who` is how it is called in the log and in the EngineError that is raised where it cannot start."""
    path = find_model(settings.model, settings.revision)
    child = Child(target, logger=who.lower(), env=ENVIRONMENT)
    child.send({**settings.model_dump(), "model": path, **more})
    with ExitStack() as undo:
        undo.callback(child.close)
        started: dict[str, Any] = child.receive()
        if "remedy" in started:
            raise EngineError(started["failed"], started["remedy"])
        if "failed" in started:
            child.close()  # so that all that it printed has been read
            cause = child.root_cause() or started["failed"]
            raise EngineError(f"{who} cannot start with {settings.model}: {cause}", _remedy(cause))
        undo.pop_all()
    return child, started


def feed(child: Child, requests: Iterable[Request | None], window: int) -> Iterator[Completed]:
    """Keeps so many requests in the child, and yields each one's answers as they finish."""
    waiting = iter(requests)
    live = 0
    while True:
        for request in ready(waiting, window - live):
            child.send(
                {
                    "id": request.id,
                    "messages": request.messages,
                    "tools": request.tools,
                    "chat_template_kwargs": request.chat_template_kwargs,
                    "seed": request.seed,
                    "schema": request.schema,
                }
            )
            live += 1
        if not live:
            return
        answer = child.receive()
        if "refused" in answer:
            child.close()
            raise EngineError(f"vLLM refuses the sampling parameters: {answer['refused']}", answer["remedy"])
        live -= 1
        outputs = [Output(**output) for output in answer.pop("outputs")]
        yield Completed(outputs=outputs, **answer)


def _remedy(cause: str) -> str:
    if "No module named 'vllm" in cause:
        return "Install vLLM: the extra `gpu` on a machine with an NVIDIA GPU, else `cpu`; or use type = 'server'."
    if "memory" in cause.lower():
        return "Lower gpu_memory_utilization or max_model_len in the engine's args, or end what else holds the memory."
    return "The whole log is in logs/run.log of the run directory."
