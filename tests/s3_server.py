"""An S3 server on loopback, moto's, in a process of its own, with faults in front of it that a test orders."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

PATIENCE = 60
"""Seconds for an answer, on a machine that others use."""

KEY, SECRET = "AKIACANARY7H3K", "canary/secret/9fQ2"


@dataclass
class Fault:
    """What befalls the next `times` requests whose `METHOD /path?query` holds `of`: they wait `delay` seconds, and are answered
    `status` where it is not 0; or `broken`, their connection ends in the middle of the answer."""

    of: str
    times: int = 1
    status: int = 0
    delay: float = 0.0
    broken: bool = False


class S3:
    """The server, as tests see it."""

    def __init__(self, url: str):
        self.url = url
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def order(self, *faults: Fault) -> None:
        httpx.post(f"{self.url}/_faults", json=[asdict(fault) for fault in faults], timeout=PATIENCE).raise_for_status()

    def left(self) -> int:
        """How many requests are yet to meet a fault."""
        return sum(fault["times"] for fault in httpx.get(f"{self.url}/_faults", timeout=PATIENCE).json())

    def log(self) -> list[str]:
        """All requests since it was last asked, as `METHOD /path?query status`."""
        found: list[str] = httpx.get(f"{self.url}/_log", timeout=PATIENCE).json()
        return found


@contextmanager
def serving() -> Iterator[S3]:
    """A server, with a bucket `bucket`, for as long as the block runs."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        s3 = S3(f"http://127.0.0.1:{int(process.stdout.readline())}")
        httpx.put(f"{s3.url}/bucket", timeout=PATIENCE).raise_for_status()
        yield s3
    finally:
        process.kill()
        process.wait()


class Faulty:
    """A WSGI application in front of another one."""

    def __init__(self, app: Any):
        self._app = app
        self._faults: list[Fault] = []
        self._log: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query and '?' + query}"
        if environ["PATH_INFO"] in ("/_faults", "/_log"):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._told(environ)).encode()]
        fault = self._met(request)
        if fault:
            time.sleep(fault.delay)
        if fault and fault.status:
            self._log.append(f"{request} {fault.status}")
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {503: "SlowDown", 500: "InternalError", 403: "AccessDenied"}[fault.status]
            start_response(f"{fault.status} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]

        def started(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            self._log.append(f"{request} {status[:3]}")
            return start_response(status, headers, *more)

        answer = self._app(environ, started)
        return self._half(answer) if fault and fault.broken else answer

    def _told(self, environ: dict[str, Any]) -> Any:
        with self._lock:
            if environ["PATH_INFO"] == "/_log":
                log, self._log = self._log, []
                return log
            if environ["REQUEST_METHOD"] == "POST":
                given = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self._faults = [Fault(**one) for one in given]
            return [asdict(fault) for fault in self._faults]

    def _met(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.of in request:
                    fault.times -= 1
                    return fault
        return None

    def _half(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        whole = b"".join(answer)
        yield whole[: len(whole) // 2]
        raise ConnectionResetError("as ordered")


def main() -> None:
    """Serve, and print the port; until the input ends, as it does with whoever started this."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
