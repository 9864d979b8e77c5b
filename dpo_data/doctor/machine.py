"""Python, memory, disks and limits of this machine."""

import os
import platform
import resource
import shutil
import sys
from pathlib import Path

from dpo_data.doctor.check import Check

GIB = 2**30


def python() -> Check:
    """Whether dpo-data and vLLM run on it."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 12) and sys.platform == "linux"
    return Check("ok" if good else "bad", "python", f"{platform.python_version()} on {sys.platform} (3.11 or 3.12 on Linux)")


def memory() -> Check:
    """Main memory; the kernel's word, so a container's limit is not seen."""
    table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(table["MemAvailable"].split()[0]) / 2**20
    return Check("ok" if free > 4 else "warn", "memory", f"{free:.1f} GiB free (the demo needs 6)")


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where processes of one engine, and Ray, pass on what is large."""
    if not folder.is_dir():
        return Check("warn", "shm", f"no {folder}: engines on several GPUs and Ray need one")
    free = shutil.disk_usage(folder).free / GIB
    todo = "" if free > 1 else ": several GPUs and Ray need more; start a container with --ipc=host or --shm-size=8g"
    return Check("warn" if todo else "ok", "shm", f"{free:.1f} GiB free in {folder}{todo}")


def disk(run: str) -> Check:
    """Free space where models and runs go, and whether runs may be written there."""
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    places = {"here": Path(), "for models": Path(cache).expanduser(), "for runs": Path(run)}
    free = {name: shutil.disk_usage(_there(path)).free / GIB for name, path in places.items()}
    told = ", ".join(f"{gib:.1f} GiB free {name}" for name, gib in free.items())
    if not os.access(_there(Path(run)), os.W_OK):
        return Check("bad", "disk", f"{told}; {_there(Path(run)).resolve()} may not be written: name another folder with --run")
    if min(free.values()) < 5:
        mark = "bad" if min(free.values()) < 0.5 else "warn"
        return Check(mark, "disk", f"{told}: free some, or set HF_HOME, or --run, to a larger disk")
    return Check("ok", "disk", told)


def files() -> Check:
    """How many files and connections a process may have open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 4096:
        return Check(
            "warn", "files", f"{most} open files at most: run `ulimit -n 65536` first; Ray and many requests need more"
        )
    return Check("ok", "files", f"{'any number of' if most == resource.RLIM_INFINITY else f'{most:,}'} open files at most")


def _there(path: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())
