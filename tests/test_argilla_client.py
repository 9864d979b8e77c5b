"""The client of Argilla's API: each fault is one error with its remedy; what passes by itself is tried again."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
from argilla_server import LocalArgilla

from dpo_data.argilla.access import Access
from dpo_data.argilla.client import LONGEST_PAUSE, PAUSES, Client
from dpo_data.errors import ArgillaError

URL = "http://argilla.example"
Answer = Callable[[httpx.Request], httpx.Response]


def client(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request], list[float]]:
    """A client that is given these answers in turn, the last one for ever; what it asked, and how long it waited."""
    asked: list[httpx.Request] = []
    waited: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        one = answers[min(len(asked), len(answers)) - 1]
        if isinstance(one, Exception):
            raise one
        return one

    return Client(Access(URL, "secret-key"), httpx.MockTransport(answer), waited.append), asked, waited


def refusal(*answers: httpx.Response | Exception) -> ArgillaError:
    with pytest.raises(ArgillaError) as error:
        client(*answers)[0].check()
    assert "\n" not in str(error.value) and URL in str(error.value) and error.value.remedy
    assert "secret-key" not in str(error.value)
    return error.value


def test_what_it_asks_is_where_and_as_whom() -> None:
    made, asked, _ = client(httpx.Response(200, json={"version": "2.8.0"}))
    made.check()
    assert [str(one.url) for one in asked] == [f"{URL}/api/v1/version", f"{URL}/api/v1/me"]
    assert asked[0].headers["X-Argilla-Api-Key"] == "secret-key"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    made, asked, waited = client(*[httpx.Response(status)] * 3, httpx.Response(200, json={"well": True}))
    assert made.get("x") == {"well": True} and len(asked) == 4
    assert all(0.75 * pause <= one <= 1.25 * pause for one, pause in zip(waited, PAUSES, strict=False)), waited


@pytest.mark.parametrize(
    ("told", "least", "most"), [("9", 6, 12), ("100000", 0, LONGEST_PAUSE * 1.25), ("Wed, 21 Oct", 0.3, 1)]
)
def test_it_waits_as_long_as_the_server_says_within_reason(told: str, least: float, most: float) -> None:
    made, _, waited = client(httpx.Response(503, headers={"Retry-After": told}), httpx.Response(200, json=1))
    assert made.get("x") == 1 and least <= waited[0] <= most


def test_a_server_that_stays_busy_is_an_error_after_a_few_tries() -> None:
    made, asked, waited = client(httpx.Response(503, json={"detail": "locked"}))
    with pytest.raises(ArgillaError, match=r"fails: GET /api/v1/x: 503 locked\. Run again"):
        made.get("x")
    assert len(asked) == len(PAUSES) + 1 and len(waited) == len(PAUSES)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (httpx.ConnectError("refused"), "refused"),
        (httpx.ReadTimeout("slow"), "takes too long"),
        (httpx.ConnectTimeout("slow"), "takes too long"),
        (httpx.RemoteProtocolError("it hung up"), "hung up"),
        (httpx.ReadError(""), "ReadError"),
    ],
)
def test_a_server_that_cannot_be_reached(fault: Exception, told: str) -> None:
    error = refusal(fault)
    assert told in error.what and "argilla up" in error.remedy
    made, asked, _ = client(fault, fault, httpx.Response(200, json={"back": 1}))
    assert made.get("x") == {"back": 1} and len(asked) == 3, "one that comes back is not noticed"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(401, json={"detail": {"code": "argilla.api.errors::UnauthorizedError"}}), "does not know the API key"),
        (httpx.Response(403, json={"detail": "no"}), "does not allow GET /api/v1/version"),
        (httpx.Response(404, json={"detail": "Dataset with id `1` not found"}), "Dataset with id `1` not found"),
        (httpx.Response(422, json={"detail": "too long"}), "422 too long"),
        (httpx.Response(404, text="<html>nothing here</html>"), "no Argilla"),
        (httpx.Response(200, text="<html>hello</html>"), "no Argilla"),
        (httpx.Response(200, json=["a list"]), "no Argilla: it tells no version"),
        (httpx.Response(200, json={"version": None}), "no Argilla: it tells no version"),
        (httpx.Response(301, headers={"Location": "https://argilla.example/api"}), "sends on to https://argilla.example"),
        (httpx.Response(200, json={"version": "1.29.1"}), "Argilla 1.29.1"),
        (httpx.Response(200, json={"version": "3.0.0"}), "Argilla 3.0.0"),
    ],
)
def test_what_it_refuses_or_cannot_be(answer: httpx.Response, told: str) -> None:
    assert told in refusal(answer).what


@pytest.mark.parametrize(
    "access",
    [
        Access("http://[::1", "k"),
        Access("http://x\0y", "k"),
        *(Access(URL, key) for key in ("schlüssel", "sekret\n", "", "se kret")),
    ],
)
def test_an_address_or_a_key_that_cannot_be_one(access: Access) -> None:
    with pytest.raises(ArgillaError, match="cannot be one") as error:
        Client(access)
    assert "kret" not in str(error.value)


def test_a_password_in_the_address_is_used_and_never_shown() -> None:
    def refuses(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"].startswith("Basic ")
        return httpx.Response(401, json={"detail": "no"})

    made = Client(Access("https://anna:sekret@argilla.example", "k"), httpx.MockTransport(refuses), lambda _: None)
    with closing(made), pytest.raises(ArgillaError, match=r"://argilla\.example does not know") as error:
        made.check()
    assert "sekret" not in str(error.value) + made.url


def test_an_answer_that_cannot_be_unpacked_is_not_asked_for_again() -> None:
    asked: list[str] = []

    def garbles(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    made = Client(Access(URL, "k"), httpx.MockTransport(garbles), lambda _: None)
    with closing(made), pytest.raises(ArgillaError, match="cannot be reached"):
        made.check()
    assert len(asked) == 1


def test_an_address_without_a_scheme() -> None:
    with closing(Client(Access("localhost:6900", "k"), pause=lambda _: None)) as made, pytest.raises(ArgillaError):
        made.check()


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server that is no Argilla."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_this_machine_is_not_asked_through_a_proxy(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which could not reach it, and would read the key."""
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with closing(Client(Access(web, "k"), pause=lambda _: None)) as made, pytest.raises(ArgillaError, match="no Argilla"):
        made.check()


def test_another_web_server_is_no_argilla(web: str, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Client(Access(web, "k"))) as made, pytest.raises(ArgillaError, match="is no Argilla"):
        made.check()


def test_nothing_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    waited: list[float] = []
    with closing(Client(Access(url, "k"), pause=waited.append)) as made, pytest.raises(ArgillaError, match="cannot be reached"):
        made.check()
    assert len(waited) == len(PAUSES)


def test_a_real_one(argilla: LocalArgilla) -> None:
    with closing(Client(Access(argilla.url, argilla.key))) as made:
        assert made.check()["username"] == argilla.username
        with pytest.raises(ArgillaError, match="does not have what was asked for"):
            made.get("datasets/00000000-0000-0000-0000-000000000000")
        with pytest.raises(ArgillaError, match=r"refuses POST /api/v1/workspaces: 422"):
            made.post("workspaces", {"name": ""})
    with closing(Client(Access(argilla.url, "wrong"))) as made, pytest.raises(ArgillaError, match="does not know the API key"):
        made.check()
    _, key = argilla.user("reader")
    with closing(Client(Access(argilla.url, key))) as made, pytest.raises(ArgillaError, match="Use the key of an owner"):
        made.post("workspaces", {"name": "mine"})
