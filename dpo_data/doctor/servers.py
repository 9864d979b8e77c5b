"""Servers: whether they answer, and know the model and the key that they are asked with. No key is ever shown."""

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from dpo_data.argilla.access import access
from dpo_data.doctor.check import Check
from dpo_data.errors import ArgillaError

LIMIT = 2.0
"""Seconds that a server may take to answer."""

LOCAL = ("127.0.0.1", "localhost", "::1")
KEY = re.compile("[!-~]+")
NO_KEY = "cannot be a key: it holds blanks, line ends or letters beyond ASCII; set it anew"
PREFECT, ARGILLA = "http://127.0.0.1:4200/api", "http://127.0.0.1:6900"


def prefect() -> Check:
    """Prefect's server, which only schedules need."""
    url = os.environ.get("PREFECT_API_URL") or PREFECT
    answer = _get(f"{url}/health")
    if isinstance(answer, httpx.Response) and answer.is_success:
        return Check("ok", "prefect", f"a server answers at {shown(url)}")
    if url == PREFECT and not listens(url):
        return Check("ok", "prefect", "port 4200 is free: `dpo-data deploy` starts a server there (only schedules need one)")
    if url == PREFECT:
        return Check("warn", "prefect", "port 4200 is taken, and not by Prefect: `dpo-data deploy --port N` takes another")
    return Check("warn", "prefect", f"no server at {shown(url)} ({_why(answer)}): start it, or mend PREFECT_API_URL")


def argilla(home: str | None) -> Check:
    """Argilla, where people rank. `home`: the folder of this machine's, where the recipe asks for people's answers."""
    try:
        found = access(Path(home or "argilla-data"))
    except ArgillaError as error:
        if home or "is set" in error.what:
            return Check("bad", "argilla", str(error))
        return _free_for_argilla()
    mark = "bad" if home else "warn"
    if not KEY.fullmatch(found.key):
        return Check(mark, "argilla", f"ARGILLA_API_KEY {NO_KEY}")
    answer = _get(f"{found.url}/api/v1/me", {"X-Argilla-Api-Key": found.key})
    if isinstance(answer, httpx.Response) and answer.is_success:
        return Check("ok", "argilla", f"answers at {shown(found.url)}, and knows the key")
    if isinstance(answer, httpx.Response) and answer.status_code == 401:
        return Check(mark, "argilla", f"{shown(found.url)} does not know the key: mend ARGILLA_API_KEY")
    return Check(
        mark, "argilla", f"{shown(found.url)}: {_why(answer)}; start it (`dpo-data argilla up`), or mend ARGILLA_API_URL"
    )


def chat(base_url: str, model: str, key_env: str) -> Check:
    """An OpenAI-compatible server: whether it serves the model, with the key that is set or without."""
    key = os.environ.get(key_env, "").strip() or "none"
    if not KEY.fullmatch(key):
        return Check("bad", "server", f"{key_env} {NO_KEY}")
    url, there = base_url.rstrip("/"), f"{key_env} is {'not ' * (key == 'none')}set"
    answer = _get(f"{url}/models", {"Authorization": f"Bearer {key}"})
    if isinstance(answer, str):
        return Check("bad", "server", f"no answer from {shown(url)} ({answer}): start it, or mend base_url")
    if answer.status_code in (401, 403):
        which = "does not take the key in" if key != "none" else "wants a key: set"
        return Check("bad", "server", f"{shown(url)} {which} {key_env}")
    try:
        served = [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return Check("warn", "server", f"{shown(url)} answers, and lists no models: look whether it has {model}; {there}")
    if model not in served:
        return Check("bad", "server", f"{shown(url)} does not serve {model}: it has {', '.join(served[:5]) or 'none'}")
    return Check("ok", "server", f"{shown(url)} serves {model}; {there}")


def ray() -> Check | None:
    """The Ray cluster that RAY_ADDRESS names; None where it names none, and one is started on this machine."""
    place = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://")
    if not place or place in ("auto", "local"):
        return None
    if listens(f"tcp://{place}"):
        return Check("ok", "ray", f"something listens at RAY_ADDRESS, {place}")
    return Check("bad", "ray", f"nothing listens at RAY_ADDRESS, {place}: start the cluster, or unset it for one here")


def listens(url: str) -> bool:
    """Whether anybody takes connections there."""
    place = urlsplit(url)
    try:
        with socket.create_connection((place.hostname or "", place.port or 80), timeout=LIMIT):
            return True
    except (OSError, ValueError):
        return False


def shown(url: str) -> str:
    """An address without a user or password in it."""
    return re.sub("//[^/]*@", "//", url)


def _free_for_argilla() -> Check:
    if listens(ARGILLA):
        return Check("warn", "argilla", "port 6900 is taken, by no Argilla of this folder: `dpo-data argilla up --port N`")
    return Check("ok", "argilla", "port 6900 is free: `dpo-data argilla up` starts one there (only people's judging needs it)")


def _get(url: str, headers: dict[str, str] | None = None) -> httpx.Response | str:
    """The answer, or why there is none. No proxy is asked for this machine."""
    try:
        place = httpx.URL(url)
        return httpx.get(place, headers=headers, timeout=LIMIT, trust_env=place.host not in LOCAL)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return " ".join(shown(str(error)).split()) or type(error).__name__


def _why(answer: httpx.Response | str) -> str:
    return answer if isinstance(answer, str) else f"it answers with {answer.status_code}"
