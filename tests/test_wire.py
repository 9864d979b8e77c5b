"""The connection beneath the chat client: kept, asked again, through a proxy; each against a real socket."""

import email.utils
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import wire
from dpo_data.chat import ChatClient
from dpo_data.engines.server import Server
from dpo_data.errors import EngineError
from dpo_data.seams import Request
from dpo_data.wire import FAILURES, LONGEST, Wire

FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Raw:
    """A server that answers each request with bytes of the test's own: `script` gives them by how many came before. None closes
    the connection instead, and `closes` closes it after each answer."""

    def __init__(self, script: Callable[[int], bytes | None], closes: bool):
        self.requests: list[bytes] = []
        self.connections = 0
        self._script, self._closes = script, closes
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(one,), daemon=True).start()

    def _talk(self, one: socket.socket) -> None:
        with one, one.makefile("rb") as reader:
            while first := reader.readline():
                head = first
                while (line := reader.readline()) not in (b"\r\n", b""):
                    head += line
                length = int(re.search(rb"(?i)\ncontent-length: *(\d+)", head)[1])  # type: ignore[index]
                self.requests.append(head + b"\r\n" + reader.read(length))
                answer = self._script(len(self.requests) - 1)
                if answer is None:
                    return
                one.sendall(answer)
                if self._closes:
                    return


@contextmanager
def raw(script: Callable[[int], bytes | None] = lambda before: FINE, closes: bool = False) -> Iterator[Raw]:
    with closing(Raw(script, closes)) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be slept, which nobody sleeps."""
    found: list[float] = []
    monkeypatch.setattr(wire.time, "sleep", found.append)
    return found


def to(server: Raw, retries: int = 2, timeout: float = 30) -> Wire:
    return Wire(f"http://127.0.0.1:{server.port}/v1/chat", {"X-Key": "k"}, retries, timeout)


def test_one_connection_serves_many_requests() -> None:
    with raw() as server, closing(to(server)) as line:
        assert [line.post(b'{"a": %d}' % at).body for at in range(5)] == [b"{}"] * 5
        assert server.connections == 1
        assert server.requests[3].startswith(b"POST /v1/chat HTTP/1.1\r\n") and server.requests[3].endswith(b'\r\n\r\n{"a": 3}')
        assert b"X-Key: k\r\n" in server.requests[0] and b"Content-Type: application/json\r\n" in server.requests[0]


def test_a_connection_that_the_server_has_closed_meanwhile_costs_no_retry(pauses: list[float]) -> None:
    with raw(closes=True) as server, closing(to(server, retries=0)) as line:
        for at in range(3):
            assert line.post(b"{}").status == 200
            until = time.monotonic() + 30
            while not (line._connection.sock is None or wire._was_closed(line._connection.sock.fileno())):
                assert time.monotonic() < until
            assert server.connections == at + 1
    assert pauses == []


@pytest.mark.parametrize("cut", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b"no HTTP at all\r\n\r\n"])
def test_what_breaks_off_is_asked_again(cut: bytes | None, pauses: list[float]) -> None:
    with raw(lambda before: FINE if before else cut, closes=True) as server, closing(to(server)) as line:
        assert line.post(b"{}").status == 200
    assert len(server.requests) == 2 and len(pauses) == 1 and 0.375 <= pauses[0] <= 0.5


def test_what_always_breaks_off_is_raised(pauses: list[float]) -> None:
    with raw(lambda before: None) as server, closing(to(server, retries=5)) as line, pytest.raises(FAILURES):
        line.post(b"{}")
    assert len(server.requests) == 6
    assert [0.75 * most <= pause <= most for most, pause in zip([0.5, 1, 2, 4, LONGEST], pauses, strict=True)] == [True] * 5


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_server_is_asked_again_when_it_says(status: int, pauses: list[float]) -> None:
    busy = b"HTTP/1.1 %d No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n" % status
    with raw(lambda before: FINE if before == 2 else busy) as server, closing(to(server)) as line:
        assert line.post(b"{}").status == 200
    assert pauses == [7, 7] and server.connections == 1


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 422])
def test_what_would_be_refused_again_is_not_asked_again(status: int, pauses: list[float]) -> None:
    with raw(lambda before: b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status) as server, closing(to(server)) as line:
        assert line.post(b"{}").status == status
    assert len(server.requests) == 1 and pauses == []


def test_no_pause_is_longer_than_the_time_out(pauses: list[float]) -> None:
    busy = b"HTTP/1.1 503 No\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n"
    with raw(lambda before: FINE if before else busy) as server, closing(to(server, timeout=20)) as line:
        line.post(b"{}")
    assert pauses == [20]


@given(st.integers(-10, 10_000))
def test_a_date_to_come_again_is_understood(seconds: int) -> None:
    at = email.utils.formatdate(time.time() + seconds, usegmt=True)
    found = wire._seconds(at)
    assert found is not None and max(0, seconds - 60) <= found <= max(0, seconds) + 1


@pytest.mark.parametrize(("said", "seconds"), [("3", 3), ("0.25", 0.25), ("-1", 0), ("soon", None), (None, None)])
def test_when_to_come_again(said: str | None, seconds: float | None) -> None:
    assert wire._seconds(said) == seconds


@pytest.mark.parametrize("user", ["", "me:p%40ss@"])
def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    with raw() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{user}127.0.0.1:{proxy.port}")
        with closing(Wire("http://model.example:81/v1/chat", {}, 0, 30)) as line:
            assert line.post(b"{}").status == 200
        with raw() as server, closing(to(server)) as line:
            line.post(b"{}")  # this machine is asked without
    assert proxy.requests[0].startswith(b"POST http://model.example:81/v1/chat HTTP/1.1\r\n") and len(proxy.requests) == 1
    assert b"Host: model.example:81\r\n" in proxy.requests[0]
    assert (b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in proxy.requests[0]) == bool(user)


def test_a_server_with_certificates_is_reached_through_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is asked to connect, and refuses."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        one, _ = listener.accept()
        with one:
            seen.append(one.recv(65536))
            one.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=refuse, daemon=True).start()
    with closing(listener):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with closing(Wire("https://model.example/v1/chat", {}, 0, 30)) as line, pytest.raises(FAILURES, match="403"):
            line.post(b"{}")
    assert seen[0].startswith(b"CONNECT model.example:443 HTTP/1.")


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    assert wire._context().verify_mode.name == "CERT_REQUIRED" and wire._context().check_hostname


def answer(script: bytes) -> Any:
    with raw(lambda before: script) as server:
        engine: ChatClient = Server(base_url=f"http://127.0.0.1:{server.port}/v1/", model="m", retries=0).build()
        (found,) = engine.complete([Request("q", [{"role": "user", "content": "x"}], 7)], {})
        assert server.requests[0].startswith(b"POST /v1/chat/completions ")
        return found


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (b"HTTP/1.1 301 Moved\r\nLocation: https://other/v1\r\nContent-Length: 0\r\n\r\n", "it points to https://other/v1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "answers, and not as OpenAI's API does. Mend base_url"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "answers, and not as OpenAI's API does. Mend base_url"),
    ],
    ids=["redirect", "a web page", "a list"],
)
def test_what_is_no_chat_server_ends_the_run(script: bytes, told: str) -> None:
    with pytest.raises(EngineError, match=told.replace(".", r"\.")):
        answer(script)


def test_an_answer_without_choices_is_none() -> None:
    body = json.dumps({"id": "1"}).encode()
    found = answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert found.outputs == [] and found.n_prompt_tokens is None


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://host:port/v1", "ftp://host/v1", "http:///v1", "v1"])
def test_what_is_no_address_is_told_before_anything_is_asked(url: str) -> None:
    with pytest.raises(EngineError, match=r"cannot be asked: .*Mend base_url in the recipe"):
        Server(base_url=url, model="m").build()


def test_certificates_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    wire._context.cache_clear()
    with pytest.raises(EngineError, match=r"No such file.*SSL_CERT_FILE"):
        Server(base_url="https://127.0.0.1:9/v1", model="m").build()
    wire._context.cache_clear()


@pytest.mark.parametrize("key", ["“sekret”", "sekret\nsekret", "se kret"])
def test_a_key_that_cannot_be_one_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError, match="OPENAI_API_KEY cannot be a key") as error:
        Server(base_url="http://127.0.0.1:9/v1", model="m").build()
    assert "kret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [("http://[::1]/v1", "::1", 80), ("https://model.example/v1", "model.example", 443), ("http://x:8000/v1", "x", 8000)],
)
def test_who_is_connected_to(url: str, host: str, port: int) -> None:
    connection = Wire(url, {}, 0, 30)._connection
    assert (connection.host, connection.port) == (host, port)


def test_a_key_with_a_line_end_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    with raw() as server:
        engine = Server(base_url=f"http://127.0.0.1:{server.port}/v1", model="m").build()
        list(engine.complete([Request("q", [{"role": "user", "content": "x"}], 7)], {}))
    assert b"Authorization: Bearer sk-1\r\n" in server.requests[0]
