"""What changes a repository: content first, then a commit that names it, then refs."""

import base64
import hashlib
import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.account import LFS_SUFFIXES, page
from hub.store import Entry, HubError, Repo, Tree

if TYPE_CHECKING:
    from hub.app import Hub

LFS_MIN_SIZE = 10_000_000
"""Bytes from which on a file of any kind is kept by LFS."""


async def preupload(hub: "Hub", request: Request) -> Response:
    """Which files go through LFS, and what is there already: a file of the same oid is left out by the client."""
    repo, files = hub.repo(request, write=True), []
    tree = repo.tree(repo.resolve(request.path_params["rev"]))
    for file in (await request.json())["files"]:
        binary = b"\0" in base64.b64decode(file.get("sample") or "")
        lfs = binary or file["path"].endswith(LFS_SUFFIXES) or file["size"] >= LFS_MIN_SIZE
        files.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        if old := tree.get(file["path"]):
            files[-1]["oid"] = old.sha256 or old.oid
    return JSONResponse({"files": files})


async def lfs_batch(hub: "Hub", request: Request) -> Response:
    """Where to put each object; one without actions is stored already and not sent again."""
    repo = hub.repo(request, write=True)
    objects = [{"oid": obj["oid"], "size": obj["size"]} for obj in (await request.json())["objects"]]
    for obj in objects:
        if not repo.blob(obj["oid"]).exists():
            obj["actions"] = {"upload": {"href": hub.storage_url(request, "put", repo, obj["oid"])}}
    return JSONResponse({"transfer": "basic", "objects": objects})


async def store(hub: "Hub", request: Request) -> Response:
    hub.check_signature(request)
    of = request.path_params
    blob, digest = Repo(hub.root, of["kind"], f"{of['owner']}/{of['name']}").blob(of["oid"]), hashlib.sha256()
    part = blob.with_name(f"{of['oid']}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != of["oid"]:
            raise HubError(400, "The content does not match its SHA-256")
        os.replace(part, blob)
    finally:
        part.unlink(missing_ok=True)
    return Response(None, 200, {"ETag": f'"{of["oid"]}"'})


async def commit(hub: "Hub", request: Request) -> Response:
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    repo, branch = hub.repo(request, write=True), request.path_params["rev"]
    # From here on no await, so commits are one after another.
    if "create_pr" in request.query_params:
        raise HubError(501, "Pull requests are not part of this server")
    if (head := repo.meta["branches"].get(branch)) is None:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    tree, header = repo.tree(head), next(line["value"] for line in lines if line["key"] == "header")
    if not head.startswith(header.get("parentCommit") or head):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    for line in lines:
        if line["key"] != "header":
            tree = _changed(repo, tree, line["key"], line["value"])
    sha = repo.commit(branch, tree, header["summary"], header.get("description") or "", hub.names(request)[0])
    return JSONResponse({"success": True, "commitOid": sha, "commitUrl": f"{page(request, repo)}/commit/{sha}"})


def _changed(repo: Repo, tree: Tree, key: str, value: dict[str, Any]) -> Tree:
    """The tree after one line of a commit."""
    path = value["path"].strip("/")
    if key == "file":
        return tree | {path: repo.add(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        if not (blob := repo.blob(value["oid"])).exists():
            raise HubError(400, f"{path} points to an LFS object that does not exist: {value['oid']}")
        return tree | {path: Entry.lfs(value["oid"], blob.stat().st_size)}
    gone = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]
    if not gone:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return {p: entry for p, entry in tree.items() if p not in gone}


async def create_tag(hub: "Hub", request: Request) -> Response:
    """The tag of the body, on the revision of the path."""
    name = json.loads(await request.body())["tag"]
    return _create(hub.repo(request, write=True), "tags", name, request.path_params["rev"])


async def create_branch(hub: "Hub", request: Request) -> Response:
    """The branch of the path, from the body's starting point."""
    start = json.loads(await request.body() or b"{}").get("startingPoint") or "main"
    return _create(hub.repo(request, write=True), "branches", request.path_params["rev"], start)


def _create(repo: Repo, refs: str, name: str, start: str) -> Response:
    if name in repo.meta[refs]:
        raise HubError(409, f"Reference {name} already exists")
    repo.meta[refs][name] = repo.resolve(start)
    repo.save()
    return JSONResponse({})
