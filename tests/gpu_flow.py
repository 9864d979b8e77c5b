"""A flow that holds the GPU as a stage of `sample-and-train` does, and writes down from when to when, a line each. It ends
before its time where there is a file of its file's name with `.stop` behind it."""

import os
import time
from pathlib import Path

from prefect import flow

from dpo_data.config import parse
from flows import gc, gpu

RECIPE = {
    "name": "gpu",
    "prompts": {"path": "prompts.jsonl"},
    "sample": {"n": 2, "engine": {"type": "vllm", "model": "m"}},
    "rank": {"judge": {"type": "rule", "rule": "concise"}},
}


@flow(name="gpu-flow", persist_result=False)
def hold(file: str, seconds: float) -> None:
    gc.claim()
    with gpu.held("sample", parse(RECIPE)):
        _write(file, "begins")
        until = time.monotonic() + seconds
        while time.monotonic() < until and not Path(f"{file}.stop").exists():
            time.sleep(0.1)
        _write(file, "ends")


def _write(file: str, what: str) -> None:
    with Path(file).open("a") as lines:
        lines.write(f"{time.monotonic()} {what} {os.getpid()}\n")
