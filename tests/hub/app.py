"""The Hub as an ASGI application: who may do what, and which path leads where."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from hub import account, reading, writing
from hub.faults import drain
from hub.store import HubError, Repo

REPO = "/{owner}/{name}"
API = "/api/{kind}" + REPO
PATHS: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
    ("GET", "/api/whoami-v2", account.whoami),
    ("POST", "/api/validate-yaml", account.validate_yaml),
    ("POST", "/api/repos/create", account.create),
    ("GET", API, reading.info),
    ("GET", API + "/revision/{rev}", reading.info),
    ("GET", API + "/refs", reading.refs),
    ("GET", API + "/commits/{rev}", reading.commits),
    ("GET", API + "/tree/{rev}", reading.tree),
    ("GET", API + "/tree/{rev}/{path:path}", reading.tree),
    ("POST", API + "/paths-info/{rev}", reading.paths_info),
    ("GET", REPO + "/resolve/{rev}/{path:path}", reading.resolve),
    ("GET", "/{kind}" + REPO + "/resolve/{rev}/{path:path}", reading.resolve),
    ("GET", "/_storage/get/{kind}" + REPO + "/{oid}", reading.stored),
    ("PUT", "/_storage/put/{kind}" + REPO + "/{oid}", writing.store),
    ("POST", REPO + ".git/info/lfs/objects/batch", writing.lfs_batch),
    ("POST", "/{kind}" + REPO + ".git/info/lfs/objects/batch", writing.lfs_batch),
    ("POST", API + "/preupload/{rev}", writing.preupload),
    ("POST", API + "/commit/{rev}", writing.commit),
    ("POST", API + "/tag/{rev}", writing.create_tag),
    ("POST", API + "/branch/{rev}", writing.create_branch),
]
"""Paths are matched as they are sent: revisions carry their slashes as %2F."""


class Hub:
    """The application. `tokens` maps a token to the namespaces it may write, the user's own name first."""

    def __init__(self, root: Path, tokens: Mapping[str, list[str]]) -> None:
        self.root, self.tokens, self.key = root, tokens, secrets.token_bytes(16)
        routes = [Route(path, partial(self._answer, handler), methods=[method]) for method, path, handler in PATHS]
        self.router = Router(routes, redirect_slashes=False, default=self._unknown)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.router({**scope, "path": scope["raw_path"].decode()}, receive, send)

    async def _answer(self, handler: Callable[..., Awaitable[Response]], request: Request) -> Response:
        """A handler's answer, or its error as an answer. A token that is not known is refused everywhere."""
        request.scope["path_params"] = {name: unquote(value) for name, value in request.path_params.items()}
        try:
            self.names(request)
            return await handler(self, request)
        except HubError as error:
            await drain(request)
            return JSONResponse({"error": error.message}, error.status, error.headers)

    async def _unknown(self, scope: Any, receive: Any, send: Any) -> None:
        """The answer to a path that leads nowhere; for a name without a namespace it is a repository that is not there."""

        async def refuse(hub: Hub, request: Request) -> Response:
            short = re.fullmatch(r"/api/(models|datasets|spaces)/[^/]+(/revision/.+)?|/[^/]+/resolve/.+", scope["path"])
            raise HubError(404, f"No such page: {scope['method']} {scope['path']}", "RepoNotFound" if short else None)

        request = Request({**scope, "path_params": {}}, receive)
        await (await self._answer(refuse, request))(scope, receive, send)

    def names(self, request: Request, needed: bool = False) -> list[str]:
        """The namespaces of the request's token, the user first; empty for an anonymous request."""
        if (authorization := request.headers.get("authorization")) is None:
            if needed:
                raise HubError(401, "Invalid username or password.")
            return []
        if (names := self.tokens.get(authorization.removeprefix("Bearer "))) is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return names

    def repo(self, request: Request, write: bool = False) -> Repo:
        """The repository that the request's path names. Raises HubError as the Hub does, which hides what it may not show."""
        of = request.path_params
        names, repo = self.names(request), Repo(self.root, of.get("kind", "models"), f"{of['owner']}/{of['name']}")
        hidden = not repo.meta or (repo.meta["private"] and repo.owner not in names)
        if not names and (hidden or write):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if hidden:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and repo.owner not in names:
            raise HubError(403, "You don't have the required permissions to write to this repository")
        return repo

    def signature(self, path: str) -> str:
        return hmac.new(self.key, path.encode(), hashlib.sha256).hexdigest()

    def storage_url(self, request: Request, verb: str, repo: Repo, oid: str) -> str:
        """A link that needs no token, on the other loopback name: to the clients that is another host, as a CDN is."""
        path = f"/_storage/{verb}/{repo.kind}/{repo.name}/{oid}"
        return f"http://localhost:{request.url.port}{path}?sig={self.signature(path)}"

    def check_signature(self, request: Request) -> None:
        """Raises HubError unless the request came by a link that `storage_url` made."""
        if not hmac.compare_digest(self.signature(request.url.path), request.query_params.get("sig", "")):
            raise HubError(403, "SignatureDoesNotMatch")
