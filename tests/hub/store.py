"""Repositories of the test hub as plain files: content (`blobs`), commits (a full tree each) and the refs (`meta.json`).

Content and commits never change once written; a commit becomes visible when `meta.json` is replaced, in one step.
"""

import hashlib
import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml


class HubError(Exception):
    """An error answer; `code` is what the clients turn into RepositoryNotFoundError and its like."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.message, self.headers = status, message, {k: v for k, v in headers.items() if v}


@dataclass(frozen=True)
class Entry:
    """A file of a tree: its git blob id and, when LFS keeps it, the SHA-256 of its content."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def lfs(cls, sha256: str, size: int) -> "Entry":
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(git_oid(pointer.encode()), size, sha256)

    def info(self) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return {"size": self.size, "oid": self.oid, "blobId": self.oid} | ({"lfs": lfs} if self.sha256 else {})


Tree = dict[str, Entry]


class Repo:
    def __init__(self, root: Path, kind: str, name: str) -> None:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
            raise HubError(400, f"Invalid repository name: {name}")
        self.kind, self.name, self.owner, self.path = kind, name, name.split("/")[0], root / kind / name
        self.meta: dict[str, Any] = {}  # empty: there is no such repository
        with suppress(FileNotFoundError):
            self.meta = json.loads((self.path / "meta.json").read_bytes())

    def create(self, private: bool, author: str, files: dict[str, bytes]) -> None:
        (self.path / "blobs").mkdir(parents=True)
        self.meta = {"private": private, "created": now(), "branches": {}, "tags": {}}
        self.commit("main", {path: self.add(data) for path, data in files.items()}, "initial commit", "", author)

    def save(self) -> None:
        write_atomic(self.path / "meta.json", json.dumps(self.meta).encode())

    def blob(self, content_id: str) -> Path:
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", content_id):
            raise HubError(400, f"Invalid object id: {content_id}")
        return self.path / "blobs" / content_id

    def add(self, data: bytes) -> "Entry":
        entry = Entry(git_oid(data), len(data))
        write_atomic(self.blob(entry.oid), data)
        return entry

    def commit(self, branch: str, tree: Tree, title: str, message: str, author: str) -> str:
        parent, files = self.meta["branches"].get(branch), {path: asdict(tree[path]) for path in sorted(tree)}
        record = {"parent": parent, "title": title, "message": message, "author": author, "date": now(), "tree": files}
        data = json.dumps(record, sort_keys=True).encode()
        sha = hashlib.sha1(data).hexdigest()
        write_atomic(self.path / "commits" / sha, data)
        self.meta["branches"][branch] = sha
        self.save()
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.meta["branches"].get(revision) or self.meta["tags"].get(revision)
        if sha is None and re.fullmatch("[0-9a-f]{40}", revision) and (self.path / "commits" / revision).exists():
            sha = revision
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def record(self, sha: str) -> dict[str, Any]:
        return json.loads((self.path / "commits" / sha).read_bytes())

    def tree(self, sha: str) -> Tree:
        return {path: Entry(**entry) for path, entry in self.record(sha)["tree"].items()}

    def history(self, sha: str | None) -> list[dict[str, Any]]:
        commits: list[dict[str, Any]] = []
        while sha is not None:
            commits.append(self.record(sha) | {"id": sha})
            sha = commits[-1]["parent"]
        return commits


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.write_bytes(data)
    os.replace(part, path)


def card_data(text: str) -> dict[str, Any]:
    """The metadata at the head of a README.md; ValueError when it is not valid."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        data = (yaml.safe_load(match[1]) if match else None) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(data, dict):
        raise ValueError("the metadata is not a mapping")
    return data
