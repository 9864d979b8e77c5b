"""Failures on demand around an ASGI application, and a log of its requests."""

import asyncio
import re
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse


@dataclass
class Fault:
    """One failure, for the requests whose "METHOD path" the expression `match` finds.

    `status` answers so; `drop_request` and `drop_response` cut the connection after `after` bytes of that body, a `reset`
    with a TCP reset. `skip` matching requests are let through first, `times` are then hit (-1: all). `delay` is in seconds.
    """

    match: str = ""
    kind: Literal["status", "drop_request", "drop_response", "slow"] = "status"
    status: int = 503
    after: int = 0
    skip: int = 0
    times: int = 1
    delay: float = 0.0
    reset: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Faults:
    """The application with its `faults` to come and the `log` of its requests, the oldest first."""

    def __init__(self, app: Any) -> None:
        self.app, self.faults, self.log = app, list[Fault](), list[dict[str, Any]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request, line = Request(scope, receive), f"{scope['method']} {scope['raw_path'].decode()}"
        entry = {"line": line, "query": scope["query_string"].decode(), "auth": "authorization" in request.headers}
        entry |= {"range": request.headers.get("range"), "status": None, "time": time.monotonic()}
        self.log.append(entry)
        fault = self._take(line)
        count = {"drop_request": 0, "drop_response": 0}

        def cut(kind: str) -> bool:
            if fault is None or fault.kind != kind or count[kind] < fault.after:
                return False
            _abort(scope["state"]["transport"], fault.reset)
            entry["status"] = kind
            return True

        async def guarded_receive() -> Any:
            message = await receive()
            count["drop_request"] += len(message.get("body", b""))
            return {"type": "http.disconnect"} if cut("drop_request") else message

        async def guarded_send(message: Any) -> None:
            if cut("drop_response"):
                raise ClientDisconnect
            entry["status"] = message.get("status", entry["status"])
            await send(message)
            count["drop_response"] += len(message.get("body", b""))

        try:
            await asyncio.sleep(fault.delay if fault else 0)
            if fault is not None and fault.kind == "status":
                await drain(request)
                answer = JSONResponse({"error": "injected fault"}, fault.status, fault.headers)
                return await answer(scope, receive, guarded_send)
            await self.app(scope, guarded_receive, guarded_send)
        except ClientDisconnect:
            await asyncio.sleep(0.01)  # the server learns of the cut first, and does not report a missing answer

    def _take(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.match, line):
                if fault.skip == 0:
                    fault.times -= 1
                    return fault
                fault.skip -= 1
        return None


def _abort(transport: Any, reset: bool) -> None:
    if reset:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def drain(request: Request) -> None:
    """Read what the client still sends before an early answer; else it sees a reset instead of the answer."""
    with suppress(RuntimeError):  # the body was already read
        async for _ in request.stream():
            pass
