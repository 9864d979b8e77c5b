"""What the driver tells of this machine's NVIDIA GPUs."""

import shutil
import subprocess
from dataclasses import dataclass

FIELDS = "index,name,driver_version,memory.used,memory.total,utilization.gpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its memory in MiB, and how much of the time it was busy of late, in percent; None where it does not tell."""

    index: int
    name: str
    driver: str
    used: int | None
    total: int | None
    busy: int | None


def gpus(limit: float = 5) -> list[Gpu]:
    """All of them, asked for at most `limit` seconds. Raises OSError where there is no driver, or it does not answer."""
    return [_gpu(line) for line in smi(f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", limit=limit).splitlines()]


def smi(*arguments: str, limit: float = 5) -> str:
    """What `nvidia-smi` prints. Raises OSError as above; FileNotFoundError where it is not installed."""
    found = shutil.which("nvidia-smi")
    if not found:
        raise FileNotFoundError("no nvidia-smi")
    try:
        done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi does not answer within {limit:g} s") from None
    if done.returncode:
        raise OSError(" ".join((done.stdout + done.stderr).split()) or f"nvidia-smi ends with exit code {done.returncode}")
    return done.stdout


def _gpu(line: str) -> Gpu:
    index, name, driver, *figures = (part.strip() for part in line.split(","))
    used, total, busy = (int(one) if one.isdigit() else None for one in figures)
    return Gpu(int(index), name, driver, used, total, busy)
