"""vLLM, whose batch is never drained while there are requests."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from dpo_data import chat_template
from dpo_data.engines.process import ENVIRONMENT as ENVIRONMENT
from dpo_data.engines.process import STALL, EngineProcess
from dpo_data.engines.workers import Workers
from dpo_data.models import engine_revision, find_adapter
from dpo_data.seams import Completed, Engine, Request, Sampling, Settings

log = logging.getLogger(__name__)


class Vllm(Settings):
    """vLLM in this machine. `args` are vLLM's own engine arguments, passed on as they are; `adapter` is a LoRA folder.
    `chat_template`: a Jinja file that takes the place of the model's own. `workers`: how many such engines answer side by side,
    on Ray, with `gpus_per_worker` each (0 on a CPU). `stall`: the seconds without a step after which it is taken for hung."""

    incidental = frozenset({"workers", "gpus_per_worker", "stall"})
    type: Literal["vllm"] = "vllm"
    model: str
    revision: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    args: dict[str, Any] = {}
    workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(1, ge=0)
    stall: float = Field(STALL, gt=0)

    def build(self) -> Engine:
        return Workers(self) if self.workers > 1 else VllmEngine(self)


class VllmEngine:
    """Owns one process with one vLLM engine, started when it is made. See `vllm_child` for the other side.

    `policy` says how a `logprob` came about: `revision` and `adapter` of the weights, `dtype`, `quantization`, `logprobs` (of
    vLLM's modes), and `template`, the hash of the chat template."""

    def __init__(self, settings: Vllm):
        began = time.monotonic()
        self.model = settings.adapter or settings.model
        template = chat_template.read(settings.chat_template) if settings.chat_template else None
        log.info("starting vLLM with %s", self.model)
        more = {"chat_template": template, "adapter": find_adapter(settings.adapter)}
        revision = engine_revision(settings)  # which may fail, so it comes before the start
        self._process = EngineProcess("dpo_data.engines.vllm_child:serve", "vLLM", settings, settings.stall, **more)
        self.policy = {"revision": revision, "adapter": settings.adapter, **self._process.started["policy"]}
        log.info("vLLM is ready after %.0f s", time.monotonic() - began)

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        """Keeps enough requests in the child for four full batches, and yields each group of answers as it finishes."""
        window = max(32, 4 * int(self._process.started["max_num_seqs"]) // int(sampling.get("n", 1)))
        return self._process.answers(requests, window, sampling)

    def close(self) -> None:
        self._process.close()
