"""A client for Argilla's REST API: one place for its errors and for retries. The SDK is not used: it loses a ranking's ranks.

Every call of ours may be made again: records are upserted by their external id, and what exists is not made.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from dpo_data.argilla.access import Access
from dpo_data.errors import ArgillaError

log = logging.getLogger(__name__)

MAJOR = "2"
"""The version of the API that is spoken here: of Argilla 2.0 to 2.8."""
RETRIED = frozenset({429, 500, 502, 503, 504})
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, give or take a quarter."""
LONGEST_PAUSE = 60.0
LASTING = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError)
"""What another try cannot mend."""
TIMEOUT = httpx.Timeout(60, connect=10)

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that are this machine: no proxy is asked for them, which could not reach them, and would read the key."""
_KEY = re.compile(r"[!-~]+")
_USERINFO = re.compile(r"//[^/]*@")
"""A user and password in an address, which are never shown."""


class Client:
    """An Argilla's REST API. `close` ends its connections."""

    def __init__(
        self, access: Access, transport: httpx.BaseTransport | None = None, pause: Callable[[float], None] = time.sleep
    ):
        self.url, self._pause = _USERINFO.sub("//", access.url), pause
        headers = {"X-Argilla-Api-Key": access.key, "Content-Type": "application/json"}
        remedy = "Check ARGILLA_API_URL and ARGILLA_API_KEY."
        if not _KEY.fullmatch(access.key):
            raise ArgillaError("Argilla's API key cannot be one: it holds blanks, line ends or letters beyond ASCII", remedy)
        try:
            base, trust_env = f"{access.url}/api/v1/", httpx.URL(access.url).host not in LOCAL
            self._http = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=trust_env)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ArgillaError(f"Argilla's address cannot be one: {error}", remedy) from None

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self.ask("GET", path, params=params)

    def post(self, path: str, json: Any) -> Any:
        return self.ask("POST", path, json=json)

    def put(self, path: str, content: bytes | None = None) -> Any:
        return self.ask("PUT", path, content=content)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """The JSON answer to one request. A server that is busy, or cannot be reached, is asked again, a few times. Raises
        ArgillaError."""
        for pause in (*PAUSES, None):
            try:
                answer = self._http.request(method, path, **more)
            except httpx.RequestError as error:
                if pause is None or isinstance(error, LASTING):
                    raise self._unreached(error) from None
                log.warning("argilla: %s %s: %r; once more", method, path, error)
            else:
                if answer.is_success:
                    return self._read(answer)
                if pause is None or answer.status_code not in RETRIED:
                    raise self._refused(answer)
                log.warning("argilla: %s %s: %d; once more", method, path, answer.status_code)
                with suppress(ValueError):
                    pause = max(pause, min(LONGEST_PAUSE, float(answer.headers.get("Retry-After", 0))))
            self._pause(pause * random.uniform(0.75, 1.25))
        raise AssertionError  # the last try has returned or raised

    def check(self) -> dict[str, Any]:
        """Who asks, as Argilla has it. Raises ArgillaError where there is no Argilla, another version of it, or a wrong key."""
        told = self.get("version")
        version = str(told.get("version") or "") if isinstance(told, dict) else ""
        if not version:
            raise self._no_argilla("it tells no version")
        if version.split(".")[0] != MAJOR:
            raise ArgillaError(
                f"{self.url} runs Argilla {version}, and only {MAJOR}.x is spoken here",
                f"Use an Argilla {MAJOR}.x, as `dpo-data argilla up` starts one.",
            )
        me: dict[str, Any] = self.get("me")
        return me

    def _read(self, answer: httpx.Response) -> Any:
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise self._no_argilla(f"{answer.request.method} {answer.request.url.path} is not answered in JSON") from None

    def _no_argilla(self, why: str) -> ArgillaError:
        return ArgillaError(f"What answers at {self.url} is no Argilla: {why}", "Set ARGILLA_API_URL to the UI's address.")

    def _unreached(self, error: httpx.RequestError) -> ArgillaError:
        said = "it takes too long to answer" if isinstance(error, httpx.TimeoutException) else str(error) or repr(error)
        return ArgillaError(
            f"Argilla at {self.url} cannot be reached: {said}",
            "Start it (`dpo-data argilla up` on this machine) or check ARGILLA_API_URL, and run again: what it has is kept.",
        )

    def _refused(self, answer: httpx.Response) -> ArgillaError:
        status, what = answer.status_code, f"{answer.request.method} {answer.request.url.path}"
        try:
            said = str(answer.json()["detail"])[:500]
        except (ValueError, KeyError, TypeError):
            if answer.is_redirect:
                return self._no_argilla(f"it sends on to {answer.headers.get('Location')}")
            if status < 500:
                return self._no_argilla(f"{what} is answered with {status}")
            said = answer.reason_phrase
        if status == 401:
            remedy = "Set ARGILLA_API_KEY to the key that its UI shows under My settings."
            return ArgillaError(f"Argilla at {self.url} does not know the API key", remedy)
        if status == 403:
            return ArgillaError(f"Argilla at {self.url} does not allow {what} with this API key", "Use the key of an owner.")
        if status == 404:
            remedy = "If somebody deleted it there, run again: what is missing is made anew."
            return ArgillaError(f"Argilla at {self.url} does not have what was asked for: {what}: {said}", remedy)
        if status in RETRIED:
            remedy = "Run again when it is well: what it has is kept."
            return ArgillaError(f"Argilla at {self.url} fails: {what}: {status} {said}", remedy)
        return ArgillaError(f"Argilla at {self.url} refuses {what}: {status} {said}", "Mend what it names, and run again.")
