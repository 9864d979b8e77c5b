"""A real Argilla for the tests: dpo-data's own, on a free port, in a folder of its own."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import pytest

from dpo_data.argilla import local
from dpo_data.argilla.access import credentials
from dpo_data.argilla.environment import environment
from dpo_data.errors import ArgillaError


@dataclass(frozen=True)
class LocalArgilla:
    """A server that runs, and its owner."""

    url: str
    key: str
    home: Path
    username: str
    password: str

    def user(self, name: str) -> tuple[str, str]:
        """An annotator's password and API key; made where there is none of that name."""
        local.add_user(self.home, name)
        known = credentials(self.home)
        assert known is not None
        return known["users"][name]["password"], known["users"][name]["api_key"]

    def ask(self, method: str, path: str, key: str | None = None, **more: Any) -> Any:
        """One request to the REST API, as the owner or with another's key. Returns the JSON answer."""
        url, headers = f"{self.url}/api/v1/{path}", {"X-Argilla-Api-Key": key or self.key}
        answer = httpx.request(method, url, headers=headers, timeout=120, trust_env=False, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None


@contextmanager
def serving(home: Path) -> Iterator[LocalArgilla]:
    """A server in this folder; skips the test, and says so, where it cannot be installed."""
    try:
        environment()
    except ArgillaError as error:
        if "DPO_DATA_NEEDS_ARGILLA" in os.environ:
            raise
        pytest.skip(f"NO ARGILLA HERE: {error}")
    access = local.up(home, 0)
    known = json.loads((home / "credentials.json").read_text())
    try:
        yield LocalArgilla(access.url, access.key, home, known["username"], known["password"])
    finally:
        local.down(home)


def open_for_answers(server: LocalArgilla) -> str:
    """The id of a published dataset in the workspace dpo-data: a text field and a rating, which nine people give."""
    places = {one["name"]: one["id"] for one in server.ask("GET", "me/workspaces")["items"]}
    distribution = {"strategy": "overlap", "min_submitted": 9}
    new = {"name": f"answers-{uuid4()}", "workspace_id": places["dpo-data"], "distribution": distribution}
    dataset: str = server.ask("POST", "datasets", json=new)["id"]
    field = {"name": "text", "title": "text", "required": True, "settings": {"type": "text"}}
    server.ask("POST", f"datasets/{dataset}/fields", json=field)
    options = {"type": "rating", "options": [{"value": value} for value in range(1, 6)]}
    question = {"name": "quality", "title": "quality", "required": True, "settings": options}
    server.ask("POST", f"datasets/{dataset}/questions", json=question)
    server.ask("PUT", f"datasets/{dataset}/publish")
    return dataset


def log_records(server: LocalArgilla, dataset: str, count: int, size: int) -> int:
    """Log that many records of so many characters, 250 at a time. Returns how many the server took."""
    words = ("every good answer says why and then stops " * (size // 40 + 1))[:size]
    taken = 0
    for begin in range(0, count, 250):
        items = [{"external_id": str(at), "fields": {"text": words}} for at in range(begin, min(count, begin + 250))]
        taken += len(server.ask("POST", f"datasets/{dataset}/records/bulk", json={"items": items})["items"])
    return taken


def answer(server: LocalArgilla, dataset: str, key: str, stop: Event, answered: list[str]) -> None:
    """Answer what is pending, as the UI does, until `stop` is set or 200 are answered; notes the records' ids."""
    pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    while len(answered) < 200 and not stop.is_set():
        body = {"filters": {"and": [pending]}}
        found = server.ask("POST", f"me/datasets/{dataset}/records/search", key, json=body, params={"limit": 10})["items"]
        for one in found[:3]:
            said = {"status": "submitted", "values": {"quality": {"value": 1 + len(answered) % 5}}}
            server.ask("POST", f"records/{one['record']['id']}/responses", key, json=said)
            answered.append(one["record"]["id"])
