"""The benchmark of sampling: that it runs to its end, with real engines, and tells what it saw."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick_vllm")
def test_the_sample_stage_and_raw_vllm_by_turns() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_sample.py"), "--device", "cpu", "--tiny", "--n", "2"]
    command += ["--answers", "32", "--rounds", "2", "--only", "raw", "pipeline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    same, of = map(int, re.findall(r"(\d+) of (\d+) groups of answers are the same", done.stdout)[0])
    assert same == of > 20
    raw, ours = [line.split("|")[2:-1] for line in done.stdout.splitlines() if line.startswith("| 2 ")]
    assert "LLM.generate" in raw[0] and raw[2].strip() == "1.000 (1.000, 1.000)"
    assert "sample stage" in ours[0] and re.fullmatch(r" \d\.\d{3} \(\d\.\d{3}, \d\.\d{3}\) ", ours[2])
    assert re.fullmatch(r" \d\.\d\d ", ours[3]) and re.fullmatch(r" \d+\.\d of \d+\.\d s ", ours[4])


def test_what_is_told_of_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    from made_up import Job
    from sample import Told, show

    jobs = [Job(1, Path("none"), {}, {}, {"a": [1, 2], "b": [3]}, {}, 16)] * 3
    raws = [
        Told(2.0, [40, 60], {"a": ["x"], "b": ["y"]}, cpu=4.0),
        Told(1.0, [50, 50], {"a": ["x"]}, cpu=4.0),
        Told(4.0, [100], cpu=2.0),
    ]
    ours = [
        Told(2.5, [100], {"a": ["x"], "b": ["z"]}, 0.5, 5.0, [0, 50]),
        Told(1.0, [90], {"a": ["x"]}, 0.25, 4.0, [100, 100]),
        Told(4.0, [100], {}, 2.0, 1.0, [0]),
    ]
    show(1, jobs, [{"raw": raw, "pipeline": own} for raw, own in zip(raws, ours, strict=True)])
    told = capsys.readouterr().out
    assert "2 of 6 groups of answers are the same" in told
    assert "| 50 | 1.000 (1.000, 1.000, 1.000) | 1.00 | – | – |" in told
    assert "| 40 | 0.900 (0.800, 0.900, 1.000) | 0.90 | 0.5 of 2.5 s | 40.0%, 50 % used |" in told


def test_a_gpu_is_looked_at_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from usage import count, watching
    from vllm.third_party import pynvml

    uses = iter([0, 30, 60] * 1000)
    fakes: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda at: at,
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=next(uses)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    with watching() as seen:
        while len(seen) < 6:
            time.sleep(0.01)
    assert count() == 2
    assert seen[:6] == [0, 30, 60, 0, 30, 60]
    ended = len(seen)
    time.sleep(0.3)
    assert len(seen) == ended


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_without_a_gpu_nothing_is_looked_at() -> None:
    from usage import hardware, watching

    with watching() as seen:
        time.sleep(0.3)
    assert seen == []
    assert hardware().startswith("CPU")
