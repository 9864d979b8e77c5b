"""A model in a process of its own, kept fed: requests stream in, finished groups stream out, no batch is drained in between.

One that hangs is ended, and one whose memory does not suffice gets a second try with a smaller batch.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from dpo_data.child import Child, lacks_memory
from dpo_data.errors import EngineError, OutOfMemory, RecipeError
from dpo_data.models import find_model
from dpo_data.rows import batched
from dpo_data.seams import Completed, Output, Request, Sampling, ready

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

STALL = 600.0
"""Seconds without a step, after which a model that has requests is taken for hung. A step is a token of each answer in the
batch, so a long answer is many of them."""

TOGETHER = 64
"""Requests that are sent at once: each time that the child is woken takes a moment from the model."""

log = logging.getLogger(__name__)


class EngineProcess:
    """Owns one child with the model of an engine's table, started when it is made; `started` is what it then tells of itself.

    `target` runs in the child, which is called `who` in the log, and is told the table and what `more` it must know. How long a
    start takes is left to vLLM, which ends its own after VLLM_ENGINE_READY_TIMEOUT_S (600 s).
    """

    _left = 0
    """How many requests the child has."""

    def __init__(self, target: str, who: str, settings: Any, stall: float = STALL, **more: Any):
        self._target, self._who, self._settings, self._more = target, who, settings, more
        self._stall = stall
        self._smaller = False
        try:
            self._start()
        except OutOfMemory as error:
            self._start_smaller(error)

    def answers(self, requests: Iterable[Request | None], window: int, sampling: Sampling | None = None) -> Iterator[Completed]:
        """Keeps about so many requests in the child, and yields each one's answers as they finish. What an earlier call was
        left with is waited for first, and dropped. Raises EngineError; and RecipeError where the sampling parameters are
        refused."""
        waiting, live = iter(requests), dict[str, Request]()
        together = max(1, min(TOGETHER, window // 4))
        self._drop()
        self._say(sampling)
        while True:
            room = window - len(live)
            for some in batched(ready(waiting, room), together) if room >= together else ():
                live |= {request.id: request for request in some}
                self._left = len(live)
                self.child.send(*map(_message, some))
            if not live:
                return
            try:
                answer = self._heard(len(live))
            except OutOfMemory as error:
                self._start_smaller(error)
                self._say(sampling)
                self.child.send(*map(_message, live.values()))
                continue
            del live[answer["id"]]
            self._left = len(live)
            outputs = [Output(**output) for output in answer.pop("outputs")]
            yield Completed(outputs=outputs, **answer)

    def close(self) -> None:
        self.child.close()

    def _drop(self) -> None:
        """Hear what nobody waits for any more, so that it is not taken for an answer to what is asked next."""
        try:
            for left in range(self._left, 0, -1):
                self._heard(left)
        except OutOfMemory as error:
            self._start_smaller(error)
        self._left = 0

    def _start(self) -> None:
        path = find_model(self._settings.model, self._settings.revision)
        self.child = child = Child(self._target, logger=self._who.lower(), env=ENVIRONMENT)
        child.send({**self._settings.model_dump(), "model": path, "smaller": self._smaller, **self._more})
        with ExitStack() as undo:
            undo.callback(child.close)
            self.started: dict[str, Any] = child.receive()
            if "remedy" in self.started:
                raise EngineError(self.started["failed"], self.started["remedy"])
            if "failed" in self.started:
                child.close()  # so that all that it printed has been read
                cause = child.root_cause() or self.started["failed"]
                kind = OutOfMemory if lacks_memory(cause) else EngineError
                raise kind(f"{self._who} cannot start with {self._settings.model}: {cause}", _remedy(kind, cause))
            undo.pop_all()

    def _start_smaller(self, error: OutOfMemory) -> None:
        """The one other try, once the child and all that it started have been ended."""
        if self._smaller:
            raise OutOfMemory(f"{error.what.rstrip('.')}, with a smaller batch too", _remedy(OutOfMemory, "")) from None
        log.warning("%s. Trying once more, with a smaller batch", error.what.rstrip("."))
        self._smaller = True
        try:
            self._start()
        except OutOfMemory as again:
            self._start_smaller(again)

    def _say(self, sampling: Sampling | None) -> None:
        if sampling is not None:
            self.child.send({"sampling": dict(sampling)})

    def _heard(self, live: int) -> dict[str, Any]:
        """The child's next answer. That it has made a step is none."""
        try:
            while "stepped" in (answer := self.child.receive(self._stall)):
                pass
        except TimeoutError:
            self.child.close()
            raise EngineError(
                f"{self._who} hangs: no step in {self._stall:g} s, and {live} requests await an answer",
                "Run again to go on: finished shards are kept. Its last words are in logs/run.log of the run directory.",
            ) from None
        if "refused" in answer:
            self.child.close()
            raise RecipeError(f"{self._who} refuses the sampling parameters: {answer['refused']}", answer["remedy"])
        heard: dict[str, Any] = answer
        return heard


def _message(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "messages": request.messages,
        "tools": request.tools,
        "chat_template_kwargs": request.chat_template_kwargs,
        "seed": request.seed,
        "schema": request.schema,
    }


def _remedy(kind: type[EngineError], cause: str) -> str:
    if "No module named 'vllm" in cause:
        return "Install vLLM: the extra `gpu` on a machine with an NVIDIA GPU, else `cpu`; or use type = 'server'."
    if kind is OutOfMemory:
        return (
            "Lower max_model_len, max_num_seqs or max_num_batched_tokens in the engine's args, raise gpu_memory_utilization, "
            "or end what else holds the memory."
        )
    return "The whole log is in logs/run.log of the run directory."
