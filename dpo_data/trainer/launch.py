"""Training on several processes: the child starts `accelerate launch`, and hands on what the first of them tells."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dpo_data.child import Parent

JOB, TOLD = "job.json", "told"
"""Where the processes find their job, and the FIFO by which the first one tells of it: `accelerate` closes inherited pipes."""


def launch(job: dict[str, Any], parent: Parent) -> None:
    """Do the job by `train.processes` processes of `trainer.rank`, which bear the child's mark and so die with it. Where they
    fail, the child ends as they did, and what they printed last tells why."""
    place = Path(job["folder"]) / ".launch.tmp"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / JOB).write_text(json.dumps(job))
    os.mkfifo(place / TOLD)
    held = os.open(place / TOLD, os.O_RDWR)  # so that reading neither waits for a writer nor ends before the processes do
    last = None
    with open(place / TOLD, encoding="utf-8") as lines:
        processes = subprocess.Popen(_command(job["settings"], place))
        threading.Thread(target=_close_after, args=(held, processes)).start()
        for told in map(json.loads, lines):
            if "done" in told or "failed" in told:
                last = told  # the parent ends the child when it has read it, and all that still runs
            else:
                parent.send(told)
    shutil.rmtree(place)
    if last is None:
        sys.exit(processes.wait() or "the processes ended without a word")
    parent.send(last)


def _close_after(pipe: int, processes: subprocess.Popen[bytes]) -> None:
    processes.wait()
    os.close(pipe)


def _command(settings: dict[str, Any], place: Path) -> list[str]:
    """`accelerate launch`, with the recipe's own arguments behind ours, so that they win. Its port is any free one."""
    ours = {"num_processes": settings["processes"], "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"),
        *(word for name, value in ours.items() for word in (f"--{name}", str(value))),
        *settings["launch"],
        *("-m", "dpo_data.trainer.rank", str(place)),
    ]
