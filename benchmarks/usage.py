"""What something takes of this machine: of the CPU, and of its GPUs as NVML tells it, while it is timed; a free port, and
what waits for somebody there."""

import os
import platform
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

EVERY = 0.1
"""Seconds between two looks."""


@contextmanager
def watching() -> Iterator[list[int]]:
    """Each GPU's utilisation in percent, ten times a second while the block runs; empty where there is no GPU. It is the share
    of time in which any kernel ran, over a period of NVML's own choice, 1/6 to 1 s."""
    seen: list[int] = []
    gpus, ended = _gpus(), threading.Event()

    def look() -> None:
        from vllm.third_party import pynvml

        while not ended.wait(EVERY):
            seen.extend(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in gpus)

    looker = threading.Thread(target=look, daemon=True)
    if gpus:
        looker.start()
    try:
        yield seen
    finally:
        ended.set()
        if gpus:
            looker.join()


def free_port() -> int:
    """A port that nobody listens on, below those that this machine gives to whoever connects to somewhere: one of these may be
    taken before a server listens there. Raises OSError where a hundred are taken."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("a hundred ports of 127.0.0.1 are taken")


def wait(done: Callable[[], Any], seconds: float = 60) -> Any:
    """What `done` says as soon as it says anything. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not (found := done()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)
    return found


def hardware() -> str:
    """The GPUs, or the CPU's cores where there are none, and the versions that matter."""
    import torch
    import vllm
    from vllm.third_party import pynvml

    where = ", ".join(str(pynvml.nvmlDeviceGetName(gpu)) for gpu in _gpus()) or f"CPU, {os.cpu_count()} cores"
    return f"{where}; Python {platform.python_version()}, vLLM {vllm.__version__}, torch {torch.__version__}"


def cpu_seconds() -> float:
    """What this process and all that run below it have used of the CPU so far. Of those that have ended nothing is known."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def count() -> int:
    """How many GPUs there are."""
    return len(_gpus())


def _gpus() -> list[Any]:
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
