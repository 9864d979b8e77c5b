"""A deterministic engine without a model: for trying a recipe in a second, and for tests.

An answer is some words of the last message, picked by a hash of the request's seed. Where a JSON schema is asked for, it
answers with a document that meets it, deterministic too, and blind to what it was asked.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from dpo_data.engines.workers import Workers
from dpo_data.seams import Completed, Engine, Output, Request, Sampling, Settings


class Echo(Settings):
    """Answers with words of the question. `delay` is the time in seconds that each request takes. `workers`: as of vLLM."""

    incidental = frozenset({"delay", "workers", "gpus_per_worker"})
    type: Literal["echo"] = "echo"
    delay: float = 0.0
    workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)

    def build(self) -> Engine:
        return Workers(self) if self.workers > 1 else EchoEngine(self.delay)


@dataclass
class EchoEngine:
    """Answers one request after the other, in their order."""

    delay: float = 0.0
    model: str = "echo"

    def complete(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Completed]:
        n, limit = int(sampling.get("n", 1)), int(sampling.get("max_tokens", 16))
        for request in requests:
            if request is None:
                return
            if self.delay:
                time.sleep(self.delay)
            yield Completed(request.id, [_answer(request, index, limit) for index in range(n)])

    def close(self) -> None:
        pass


def _answer(request: Request, index: int, limit: int) -> Output:
    key = f"{request.seed}:{index}:{request.messages[-1]['content']}"
    dice = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=64).digest()
    if request.schema:
        text = json.dumps(_meet(request.schema, dice))
        return Output(text, "stop", len(text.split()), -float(len(text)))
    words = request.messages[-1]["content"].split() or ["…"]
    wanted = 1 + dice[0] % 12
    text = " ".join(words[dice[1 + at % 63] % len(words)] for at in range(min(wanted, limit)))
    return Output(text, "length" if wanted > limit else "stop", min(wanted, limit), -0.5 * wanted)


def _meet(schema: dict[str, Any], dice: bytes) -> Any:
    if "enum" in schema:
        return schema["enum"][dice[2] % len(schema["enum"])]
    match schema.get("type"):
        case "object":
            parts = enumerate(schema.get("properties", {}).items(), 1)
            return {name: _meet(part, dice[at:] + dice[:at]) for at, (name, part) in parts}
        case "integer" | "number":
            low = schema.get("minimum", 0)
            return low + dice[3] % (int(schema.get("maximum", low + 9)) - low + 1)
        case "boolean":
            return bool(dice[4] % 2)
        case _:
            return "echo"
