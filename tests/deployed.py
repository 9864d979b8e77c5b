"""`flows/deploy.py` at work for the tests: a real Prefect server and worker, with a database of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from usage import free_port, wait

from flows import deploy


@dataclass
class Deployed:
    """`flows/deploy.py` at work, called from `folder`, which is no checkout."""

    process: "subprocess.Popen[str]"
    url: str
    folder: Path

    def ask(self, path: str, **body: Any) -> Any:
        """What the server answers: to a POST where there is a body."""
        return self.post(path, body).raise_for_status().json() if body else request("GET", self.url + path).json()

    def worker(self) -> dict[str, str]:
        """The environment of its worker."""
        [worker] = [one for one in psutil.Process(self.process.pid).children() if "worker" in one.cmdline()]
        return worker.environ()

    def post(self, path: str, body: Any) -> httpx.Response:
        return request("POST", self.url + path, json=body)

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        env = environment(self.folder) | {"PREFECT_API_URL": self.url}
        return subprocess.run([sys.executable, "-m", "prefect", *arguments], env=env, capture_output=True, text=True)


def request(method: str, url: str, **more: Any) -> httpx.Response:
    """What a server answers. One that is busy is asked again, as Prefect's own client does."""
    answered = (httpx.request(method, url, timeout=180, **more) for _ in range(300))
    return next(answer for answer in answered if answer.status_code != 503 or time.sleep(0.2))


@contextmanager
def deploying(folder: Path, port: int = 0, **env: str) -> Iterator[Deployed]:
    """From when the worker has started until the block ends, with `folder` as the user's, and `env` of its own. `port`: that of
    a server that is there."""
    port = port or free_port()
    command = [sys.executable, deploy.__file__, "--port", str(port)]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder) | env, stdout=said, stderr=said, text=True)
    here = Deployed(process, f"http://127.0.0.1:{port}/api", folder)
    try:
        wait(lambda: "started!" in (folder / "said.txt").read_text() or process.poll() is not None, 300)
        assert process.poll() is None, (folder / "said.txt").read_text()
        yield here
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=180)


def environment(folder: Path) -> dict[str, str]:
    """With Prefect's database in that folder, and a worker that starts a run's process at its time."""
    return {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": "",
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    }
