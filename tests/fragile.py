"""An engine that does to itself what its prompts say: `die`, `fail`, `hang once`. Else it answers, and tells who it is."""

import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_data.engines.workers import Workers
from dpo_data.errors import EngineError, RecipeError
from dpo_data.seams import Completed, Engine, Output, Request, Sampling, Settings


class Fragile(Settings):
    """`folder`: where it notes what it has begun. `delay`: seconds an answer takes. `starts`: how often it can be started."""

    type: Literal["fragile"] = "fragile"
    folder: str
    delay: float = 0.0
    starts: int = 1000
    workers: int = 1
    gpus_per_worker: float = 0

    def build(self) -> Engine:
        if self.workers > 1:
            return Workers(self)
        if not _once(Path(self.folder), "start", self.starts):
            raise EngineError("it can be started no more", "Buy another.")
        logging.getLogger("fragile").info("glass is %s", "blown")
        return FragileEngine(Path(self.folder), self.delay)


@dataclass
class FragileEngine:
    """Answers one request after the other with its process id and what it was asked."""

    folder: Path
    delay: float
    model: str = "fragile"
    policy = {"dtype": "glass"}

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        if "oops" in sampling:
            raise RecipeError("glass knows no 'oops'")
        for request in requests:
            if request is None:
                return
            text = request.messages[-1]["content"]
            with (self.folder / "begun").open("a") as file:
                file.write(f"{os.getpid()} {request.id}\n")
            time.sleep(self.delay)
            if "die" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "fail" in text:
                raise EngineError("it fell off the table")
            if "hang once" in text and _once(self.folder, "hang", 1):
                time.sleep(600)
            yield Completed(request.id, [Output(f"{os.getpid()} {text} {sampling.get('word')}", "stop")])

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}").touch()


def _once(folder: Path, what: str, times: int) -> bool:
    """Whether it happens for the first time, or one of the first so many, in any process."""
    for at in range(times):
        try:
            (folder / f"{what}-{at}").touch(exist_ok=False)
            return True
        except FileExistsError:
            continue
    return False


def asks(texts: list[str]) -> list[Request]:
    return [Request(f"{at}: {text}", [{"role": "user", "content": text}], at) for at, text in enumerate(texts)]
