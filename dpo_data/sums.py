"""The hashes of what a stage has written, kept beside it until the manifest holds them.

One text file, in the form that `sha256sum --check` reads: a line a file, of which the last one counts. A file's line is on the
disk before the file appears, so one that was changed or cut by hand is told from one that is whole.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dpo_data.errors import InputError
from dpo_data.files import room, write_atomically
from dpo_data.provenance import file_hash, hash_once

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"

SHARD = re.compile(r"\d+\.parquet")

LINE = re.compile(r"([0-9a-f]{64})  (\w[^/\s]*)\n")
"""Also found behind a line that a full disk or a power cut has torn. Names are the folder's own: what is changed is deleted."""


def write(path: Path, data: bytes | memoryview) -> Path:
    """Write a file as `write_atomically` does, after its hash. Raises OutOfDisk."""
    with room(path.parent), path.with_name(SUMS).open("a", encoding="utf-8") as sums:
        sums.write(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
        sums.flush()
        os.fsync(sums.fileno())
    return write_atomically(path, data)


def read(folder: Path) -> dict[str, str]:
    """The hashes of a folder's files, by name. A file that is not there has none."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {name: sha256 for sha256, name in LINE.findall(lines) if (folder / name).exists()}


def discard(folder: Path) -> None:
    (folder / SUMS).unlink(missing_ok=True)


def mend(folder: Path, manifest: Mapping[str, Any] | None) -> None:
    """Delete what is not as it was written, so that it is made again. Of a complete stage these are its shards alone, and the
    manifest goes with them."""
    told = {file["name"]: file["sha256"] for file in manifest["files"]} if manifest else read(folder)
    written = {name: sha256 for name, sha256 in told.items() if not manifest or SHARD.fullmatch(name)}
    whole = {name: sha256 for name, sha256 in written.items() if holds(folder / name, sha256)}
    for name in written.keys() - whole.keys():
        log.warning("%s is gone or changed since it was written: it alone is made again", folder / name)
        (folder / name).unlink(missing_ok=True)
    if written != whole:
        write_atomically(folder / SUMS, "".join(f"{sha256}  {name}\n" for name, sha256 in whole.items()).encode())
        (folder / "manifest.json").unlink(missing_ok=True)


def require(folder: Path, manifest: Mapping[str, Any], stage: str) -> None:
    """Raises InputError where a file of a complete stage is not what the manifest tells."""
    for file in manifest["files"]:
        name, path = file["name"], folder / file["name"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{folder}/manifest.json names {name!r}, which lies elsewhere", "Delete it: it is not ours.")
        if not holds(path, file["sha256"]):
            first = "" if SHARD.fullmatch(name) else "delete it, with manifest.json beside it, and "
            raise InputError(
                f"{path} is gone or changed since {folder} was complete",
                f"Put it back; or {first}run `dpo-data {stage} RECIPE` to redo it alone.",
            )


def facts(path: Path, folder: Path, written: Mapping[str, str]) -> dict[str, Any]:
    """A file's name, rows, size and hash, for the manifest. Raises InputError where it is no more as it was written."""
    name, sha256 = str(path.relative_to(folder)), file_hash(path)
    if written.get(name, sha256) != sha256:
        raise InputError(f"{path} was changed since it was written", "Run again to redo it alone.")
    rows = {"rows": pq.read_metadata(path).num_rows} if path.suffix == ".parquet" else {}
    return {"name": name, **rows, "bytes": path.stat().st_size, "sha256": sha256}


def holds(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this hash. It is read once in a process."""
    return path.is_file() and hash_once(path) == sha256
