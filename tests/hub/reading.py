"""What is read of a repository: its facts, its refs and history, its trees and files."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hub.store import HubError, Repo, card_data

if TYPE_CHECKING:
    from hub.app import Hub

MODEL_FACTS = ("library_name", "pipeline_tag")
"""What a model's card says of it, and the Hub tells by itself too."""

PAGE_SIZE = 1000
"""Files of a tree that one answer lists."""


async def info(hub: "Hub", request: Request) -> Response:
    repo, blobs = hub.repo(request), "blobs" in request.query_params
    sha = repo.resolve(request.path_params.get("rev", "main"))
    files = repo.tree(sha)
    body = {"_id": repo.name, "id": repo.name, "author": repo.owner, "sha": sha, "private": repo.meta["private"], "tags": []}
    body |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
    body |= {"createdAt": repo.meta["created"], "lastModified": repo.record(sha)["date"]}
    body["siblings"] = [{"rfilename": path} | (files[path].info() if blobs else {}) for path in sorted(files)]
    if "README.md" in files:
        card = card_data(repo.blob(files["README.md"].oid).read_text("utf-8"))
        body |= {"cardData": card, "tags": _tags(card)} | {name: card[name] for name in MODEL_FACTS if name in card}
    return JSONResponse(body)


def _tags(card: dict[str, Any]) -> list[str]:
    """A card's tags, and those that the Hub makes of its other words."""
    made = {"license": "license", "datasets": "dataset", "base_model": "base_model"}
    words = {name: card.get(name, []) for name in made}
    listed = {name: [told] if isinstance(told, str) else told for name, told in words.items()}
    return [*card.get("tags", []), *(f"{made[name]}:{word}" for name, told in listed.items() for word in told)]


async def refs(hub: "Hub", request: Request) -> Response:
    meta, body = hub.repo(request).meta, {"converts": [], "pullRequests": []}
    for key, ref in (("branches", "heads"), ("tags", "tags")):
        body[key] = [{"name": n, "ref": f"refs/{ref}/{n}", "targetCommit": sha} for n, sha in meta[key].items()]
    return JSONResponse(body)


async def commits(hub: "Hub", request: Request) -> Response:
    repo = hub.repo(request)
    keys, history = ("id", "title", "message", "date"), repo.history(repo.resolve(request.path_params["rev"]))
    return JSONResponse([{k: c[k] for k in keys} | {"authors": [{"user": c["author"]}]} for c in history])


async def tree(hub: "Hub", request: Request) -> Response:
    """A page of a tree; the next one is in the header Link."""
    repo, query, rev = hub.repo(request), request.query_params, request.path_params["rev"]
    base = request.path_params.get("path", "").strip("/")
    prefix, deep = f"{base}/" if base else "", query.get("recursive") in ("true", "True", "1")
    rows = _listing(repo, rev, lambda p: p.startswith(prefix) and (deep or "/" not in p[len(prefix) :]))
    if base and not rows:
        raise HubError(404, f"{base} does not exist on {rev}", "EntryNotFound", repo.resolve(rev))
    start = int(query.get("cursor", 0))
    end = start + min(int(query.get("limit", PAGE_SIZE)), PAGE_SIZE)
    link = f'<{request.url.include_query_params(cursor=end)}>; rel="next"'
    return JSONResponse(rows[start:end], headers={"Link": link} if end < len(rows) else {})


async def paths_info(hub: "Hub", request: Request) -> Response:
    repo, form = hub.repo(request), parse_qs((await request.body()).decode())
    wanted = {path.strip("/") for path in form.get("paths", [])}
    return JSONResponse(_listing(repo, request.path_params["rev"], wanted.__contains__))


async def resolve(hub: "Hub", request: Request) -> Response:
    """A file: its bytes, or for what LFS keeps a link to where they are."""
    repo, path = hub.repo(request), request.path_params["path"]
    sha = repo.resolve(request.path_params["rev"])
    if (entry := repo.tree(sha).get(path)) is None:
        raise HubError(404, "Entry not found", "EntryNotFound", sha)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.sha256 or entry.oid}"'}
    if entry.sha256 is None:
        return FileResponse(repo.blob(entry.oid), headers=headers, media_type="text/plain")
    headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
    return Response(None, 302, headers | {"Location": hub.storage_url(request, "get", repo, entry.sha256)})


async def stored(hub: "Hub", request: Request) -> Response:
    hub.check_signature(request)
    of = request.path_params
    blob = Repo(hub.root, of["kind"], f"{of['owner']}/{of['name']}").blob(of["oid"])
    return FileResponse(blob, headers={"ETag": f'"{of["oid"]}"'}, media_type="binary/octet-stream")


def _listing(repo: Repo, rev: str, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    files = repo.tree(repo.resolve(rev))
    rows = [{"type": "file", "path": path} | files[path].info() for path in sorted(files) if wanted(path)]
    for folder in sorted({path[:i] for path in files for i in range(len(path)) if path[i] == "/" and wanted(path[:i])}):
        below = sorted((path, entry.oid) for path, entry in files.items() if path.startswith(f"{folder}/"))
        rows.append({"type": "directory", "path": folder, "oid": hashlib.sha1(repr(below).encode()).hexdigest(), "size": 0})
    return rows
