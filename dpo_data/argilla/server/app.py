"""argilla-server's own application, as one machine needs it: without Elasticsearch, Redis, or what only costs time here."""

import os
import re
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import argilla_server._app as argilla
from argilla_server.contexts.webhooks import list_enabled_webhooks
from argilla_server.models import database
from argilla_server.search_engine import SearchEngine
from argilla_server.webhooks.v1 import records as record_events
from brotli_asgi import BrotliMiddleware
from server.engine import Engine
from server.jobs import run_jobs_here

app = argilla.app


def _ask_nobody_for_fonts() -> None:
    """The UI is this process's own copy; without this each of its pages asks Google's servers for two fonts."""
    (statics,) = [route.app.directory for route in app.routes if route.name == "static"]
    for sheet in Path(statics).rglob("*.css"):
        sheet.write_text(re.sub(r"@import url\(https://fonts\.[^)]*\);", "", sheet.read_text()))


class _OwnPictures:
    """Has the browser load no picture or film from elsewhere: one that an answer links to would tell its host who looks."""

    _header = (b"content-security-policy", b"img-src 'self' data: blob:; media-src 'self' data: blob:")

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_header(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, with_header)


def _save_time() -> None:
    """Three quarters of a log's time went into a type adapter that was built anew for each value of each record's metadata, and
    most of the rest into events for webhooks where there are none. Nor need answers be compressed that stay on one machine."""
    database.TypeAdapter = cache(database.TypeAdapter)
    record_events.build_record_event = _only_for_webhooks(record_events.build_record_event)
    app.user_middleware = [one for one in app.user_middleware if one.cls is not BrotliMiddleware]


def _only_for_webhooks(build: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def event(db: Any, *args: Any) -> Any:
        return await build(db, *args) if await list_enabled_webhooks(db) else SimpleNamespace(notify=_nobody)

    return event


async def _nobody(db: Any) -> list[Any]:
    return []


SearchEngine.registered_classes[os.environ["ARGILLA_SEARCH_ENGINE"]] = Engine
argilla.configure_redis = lambda: None  # looked up when the application starts
run_jobs_here()
_ask_nobody_for_fonts()
app.add_middleware(_OwnPictures)
_save_time()
