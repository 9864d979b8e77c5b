"""Who asks, and which repositories there are."""

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.store import HubError, Repo, card_data

if TYPE_CHECKING:
    from hub.app import Hub

LFS_SUFFIXES = (".parquet", ".arrow", ".safetensors", ".bin", ".pt", ".onnx", ".gz", ".zip", ".zst", ".npy", ".npz", ".gguf")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


async def whoami(hub: "Hub", request: Request) -> Response:
    user, *orgs = hub.names(request, needed=True)
    body = {"type": "user", "id": user, "name": user, "fullname": user, "isPro": False}
    body["orgs"] = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in orgs]
    body["auth"] = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return JSONResponse(body)


async def validate_yaml(hub: "Hub", request: Request) -> Response:
    try:
        card_data((await request.json())["content"])
    except ValueError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


async def create(hub: "Hub", request: Request) -> Response:
    names, body = hub.names(request, needed=True), await request.json()
    kind = f"{body.get('type') or 'model'}s"
    repo = Repo(hub.root, kind, f"{body.get('organization') or names[0]}/{body['name']}")
    if repo.owner not in names:
        raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {repo.owner!r}")
    if repo.meta:
        return JSONResponse({"url": page(request, repo), "error": "You already created this repo"}, 409)
    private = body.get("visibility") == "private" or bool(body.get("private"))
    repo.create(private, names[0], {".gitattributes": GITATTRIBUTES})
    return JSONResponse({"url": page(request, repo), "name": repo.name})


def page(request: Request, repo: Repo) -> str:
    """A repository's address for people."""
    return f"{request.base_url}{'' if repo.kind == 'models' else repo.kind + '/'}{repo.name}"
